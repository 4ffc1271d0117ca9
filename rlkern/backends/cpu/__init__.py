# SPDX-License-Identifier: Apache-2.0
"""The cpu backend: hands tensors to the C++ kernels of rlkern._C, which checks their types again.

Names and signatures are those of rlkern.backends.eager; the tensors were checked at the door.
"""

import torch

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.cpu.arguments import DTYPES
from rlkern.backends.cpu.gae import gae
from rlkern.backends.cpu.group_advantage import group_advantage, group_segments
from rlkern.backends.cpu.policy_loss import policy_loss, scale_, scaled
from rlkern.backends.cpu.reverse_scan import reverse_scan
from rlkern.backends.cpu.td_loss import td_loss
from rlkern.backends.cpu.token_logprob import (
    token_logprob,
    token_logprob_backward,
    token_logprob_companions,
)
from rlkern.backends.cpu.token_objective import token_objective
from rlkern.backends.cpu.value_loss import value_loss

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
    """Returns None; raises ValueError if RLKERN_ISA asks for what this machine cannot run."""
    _C.isa_chosen()
    return None


def unsupported(stem: str, device: str, dtype: torch.dtype) -> str | None:
    """Returns why this backend cannot serve the call, or None."""
    if device != "cpu":
        return f"serves cpu tensors, not {device}"
    if dtype not in DTYPES:
        return f"does not know {dtype}"
    return None
