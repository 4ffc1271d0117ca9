# SPDX-License-Identifier: Apache-2.0
"""rlkern: fused kernels for reinforcement learning on language models."""

from rlkern import advantage, aggregate, sampling
from rlkern.algorithms import Algorithm, OfflineAlgorithm, algorithms, offline_algorithms
from rlkern.backends import BackendUnavailable, backend_name, explain, use_backend
from rlkern.controllers import AdaptiveKl, FixedKl
from rlkern.correction import (
    batch_normalized,
    off_policy_sequence_mask,
    rollout_correction,
    rollout_rejection,
)
from rlkern.fused_head import fused_head
from rlkern.linear import Lora, linear_policy_loss, linear_token_logprob
from rlkern.metrics import merge_metrics, metrics_dict
from rlkern.objective import LossOutput, policy_loss, token_objective
from rlkern.ops import TokenLogprob, group_advantage, reverse_scan, token_logprob
from rlkern.preference import (
    kto_loss,
    mean_sequence_logprob,
    mismatched_kl,
    preference_loss,
    preference_metrics_dict,
    reward_model_loss,
    sequence_logprob,
)
from rlkern.returns import (
    Gae,
    Vtrace,
    discounted_return,
    gae,
    lambda_return,
    length_adaptive_lambda,
    n_step_return,
    retrace,
    reward_to_go,
    vtrace,
)
from rlkern.value import TdLossOutput, td_loss, value_loss, value_metrics_dict

__version__ = "0.1.0.dev0"

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
    "length_adaptive_lambda",
    "linear_policy_loss",
    "linear_token_logprob",
    "mean_sequence_logprob",
    "merge_metrics",
    "metrics_dict",
    "mismatched_kl",
    "n_step_return",
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
    "td_loss",
    "token_logprob",
    "token_objective",
    "use_backend",
    "value_loss",
    "value_metrics_dict",
    "vtrace",
]
