# SPDX-License-Identifier: Apache-2.0
"""rlkern: fused kernels for reinforcement learning on language models."""

from rlkern import aggregate
from rlkern.algorithms import Algorithm, algorithms
from rlkern.backends import BackendUnavailable, backend_name, explain, use_backend
from rlkern.objective import (
    LossOutput,
    merge_metrics,
    metrics_dict,
    policy_loss,
    token_objective,
)
from rlkern.ops import TokenLogprob, group_advantage, reverse_scan, token_logprob
from rlkern.returns import Gae, gae

__version__ = "0.1.0.dev0"

__all__ = [
    "Algorithm",
    "BackendUnavailable",
    "Gae",
    "LossOutput",
    "TokenLogprob",
    "aggregate",
    "algorithms",
    "backend_name",
    "explain",
    "gae",
    "group_advantage",
    "merge_metrics",
    "metrics_dict",
    "policy_loss",
    "reverse_scan",
    "token_logprob",
    "token_objective",
    "use_backend",
]
