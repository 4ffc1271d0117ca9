# SPDX-License-Identifier: Apache-2.0
"""Hands reverse_scan to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.native.arguments import addresses


def reverse_scan(bias: Tensor, decay: Tensor) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} along the rows of (B, T)."""
    x = torch.empty_like(bias)
    _C.reverse_scan(
        *bias.shape,
        bias.dtype == torch.float64,
        *addresses(bias, decay, x),
        torch.get_num_threads(),
    )
    return x
