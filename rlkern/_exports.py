# SPDX-License-Identifier: Apache-2.0
"""What `import rlkern` offers; rlkern/__init__.py takes its names from here."""

from rlkern import advantage, aggregate, sampling, statistics
from rlkern.algorithms import Algorithm, OfflineAlgorithm, algorithms, offline_algorithms
from rlkern.backends import BackendUnavailable, backend_name, explain, use_backend
from rlkern.integrations.fused_head import fused_head
from rlkern.ops._linear_arguments import Lora
from rlkern.ops._loss_output import LossOutput
from rlkern.ops.adaptive_kl import AdaptiveKl, FixedKl
from rlkern.ops.batch_normalized import batch_normalized
from rlkern.ops.discounted_return import discounted_return
from rlkern.ops.gae import Gae, gae
from rlkern.ops.group_advantage import group_advantage
from rlkern.ops.kto_loss import kto_loss
from rlkern.ops.lambda_return import lambda_return
from rlkern.ops.last_counted import last_counted
from rlkern.ops.length_adaptive_lambda import length_adaptive_lambda
from rlkern.ops.linear_policy_loss import linear_policy_loss
from rlkern.ops.linear_token_logprob import linear_token_logprob
from rlkern.ops.metrics_dict import (
    merge_metrics,
    metrics_dict,
    preference_metrics_dict,
    value_metrics_dict,
)
from rlkern.ops.mismatched_kl import mismatched_kl
from rlkern.ops.n_step_return import n_step_return
from rlkern.ops.off_policy_metrics import off_policy_metrics
from rlkern.ops.off_policy_sequence_mask import off_policy_sequence_mask
from rlkern.ops.policy_loss import policy_loss
from rlkern.ops.preference_loss import preference_loss
from rlkern.ops.retrace import retrace
from rlkern.ops.reverse_scan import reverse_scan
from rlkern.ops.reward_model_loss import reward_model_loss
from rlkern.ops.reward_to_go import reward_to_go
from rlkern.ops.rollout_correction import rollout_correction
from rlkern.ops.rollout_rejection import rollout_rejection
from rlkern.ops.sequence_logprob import (
    ld_sequence_logprob,
    mean_sequence_logprob,
    sequence_logprob,
)
from rlkern.ops.td_loss import TdLossOutput, td_loss
from rlkern.ops.token_kl import token_kl
from rlkern.ops.token_logprob import CompanionLogprob, TokenLogprob, token_logprob
from rlkern.ops.token_objective import token_objective
from rlkern.ops.token_reward import token_reward
from rlkern.ops.value_loss import value_loss
from rlkern.ops.vtrace import Vtrace, vtrace
from rlkern.ops.wpo_weight import wpo_weight

__all__ = [
    "AdaptiveKl",
    "Algorithm",
    "BackendUnavailable",
    "FixedKl",
    "Gae",
    "Lora",
    "LossOutput",
    "OfflineAlgorithm",
    "TdLossOutput",
    "CompanionLogprob",
    "TokenLogprob",
    "Vtrace",
    "advantage",
    "aggregate",
    "algorithms",
    "backend_name",
    "batch_normalized",
    "discounted_return",
    "explain",
    "fused_head",
    "gae",
    "group_advantage",
    "kto_loss",
    "lambda_return",
    "last_counted",
    "ld_sequence_logprob",
    "length_adaptive_lambda",
    "linear_policy_loss",
    "linear_token_logprob",
    "mean_sequence_logprob",
    "merge_metrics",
    "metrics_dict",
    "mismatched_kl",
    "n_step_return",
    "off_policy_metrics",
    "off_policy_sequence_mask",
    "offline_algorithms",
    "policy_loss",
    "preference_loss",
    "preference_metrics_dict",
    "retrace",
    "reverse_scan",
    "reward_model_loss",
    "reward_to_go",
    "rollout_correction",
    "rollout_rejection",
    "sampling",
    "sequence_logprob",
    "statistics",
    "td_loss",
    "token_kl",
    "token_logprob",
    "token_objective",
    "token_reward",
    "use_backend",
    "value_loss",
    "value_metrics_dict",
    "vtrace",
    "wpo_weight",
]
