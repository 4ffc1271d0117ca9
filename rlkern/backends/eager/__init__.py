# SPDX-License-Identifier: Apache-2.0
"""Backend zero, the specification: every raw operation in eager PyTorch, any device and dtype."""

import torch

from rlkern.backends.eager.gae import gae
from rlkern.backends.eager.group_advantage import group_advantage, group_segments
from rlkern.backends.eager.policy_loss import policy_loss, scale_, scaled
from rlkern.backends.eager.reverse_scan import reverse_scan
from rlkern.backends.eager.td_loss import td_loss
from rlkern.backends.eager.token_logprob import (
    token_logprob,
    token_logprob_backward,
    token_logprob_companions,
)
from rlkern.backends.eager.token_objective import token_objective
from rlkern.backends.eager.value_loss import value_loss

__all__ = [
    "gae",
    "group_advantage",
    "group_segments",
    "policy_loss",
    "reverse_scan",
    "scale_",
    "scaled",
    "td_loss",
    "token_logprob",
    "token_logprob_backward",
    "token_logprob_companions",
    "token_objective",
    "value_loss",
]


def unavailable() -> str | None:
    """Returns why this backend cannot serve at all: never."""
    return None


def unsupported(stem: str, device: str, dtype: torch.dtype) -> str | None:
    """Returns why this backend cannot serve the call: never."""
    return None
