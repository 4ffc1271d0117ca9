# SPDX-License-Identifier: Apache-2.0
"""rlkern: fused kernels for reinforcement learning on language models."""

from rlkern import advantage, aggregate, sampling
from rlkern.algorithms import Algorithm, algorithms
from rlkern.backends import BackendUnavailable, backend_name, explain, use_backend
from rlkern.correction import (
    batch_normalized,
    off_policy_sequence_mask,
    rollout_correction,
    rollout_rejection,
)
from rlkern.metrics import merge_metrics, metrics_dict
from rlkern.objective import LossOutput, policy_loss, token_objective
from rlkern.ops import TokenLogprob, group_advantage, reverse_scan, token_logprob
from rlkern.returns import Gae, gae

__version__ = "0.1.0.dev0"

__all__ = [
    "Algorithm",
    "BackendUnavailable",
    "Gae",
    "LossOutput",
    "TokenLogprob",
    "advantage",
    "aggregate",
    "algorithms",
    "backend_name",
    "batch_normalized",
    "explain",
    "gae",
    "group_advantage",
    "merge_metrics",
    "metrics_dict",
    "off_policy_sequence_mask",
    "policy_loss",
    "reverse_scan",
    "sampling",
    "rollout_correction",
    "rollout_rejection",
    "token_logprob",
    "token_objective",
    "use_backend",
]
