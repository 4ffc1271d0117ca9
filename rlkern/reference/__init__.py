# SPDX-License-Identifier: Apache-2.0
"""Backend zero, the specification: every raw operation in eager PyTorch, any device and dtype."""

import torch

from rlkern.reference.group_advantage import group_advantage
from rlkern.reference.policy_loss import policy_loss, scale_, scaled
from rlkern.reference.reverse_scan import reverse_scan
from rlkern.reference.token_logprob import token_logprob, token_logprob_backward
from rlkern.reference.token_objective import token_objective

__all__ = [
    "group_advantage",
    "policy_loss",
    "reverse_scan",
    "scale_",
    "scaled",
    "token_logprob",
    "token_logprob_backward",
    "token_objective",
]


def unavailable() -> str | None:
    """Returns why this backend cannot serve at all: never."""
    return None


def unsupported(stem: str, device: str, dtype: torch.dtype) -> str | None:
    """Returns why this backend cannot serve the call: never."""
    return None
