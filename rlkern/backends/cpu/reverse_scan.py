# SPDX-License-Identifier: Apache-2.0
"""Hands reverse_scan to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.cpu.arguments import addresses
from rlkern.backends.memory import fresh


def sequences(x: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int, int]:
    """Returns how many sequences (B, T) or packed (N,) steps are, how long, and their bounds."""
    if cu_seqlens is None:
        return *x.shape, 0
    return cu_seqlens.shape[0] - 1, 0, cu_seqlens.data_ptr()


def reverse_scan(bias: Tensor, decay: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} in each sequence, and x = 0 after its end."""
    x = fresh(bias.shape, bias)
    _C.reverse_scan(
        bias.numel(),
        sequences(bias, cu_seqlens),
        bias.dtype == torch.float64,
        addresses(bias, decay, x),
        torch.get_num_threads(),
    )
    return x
