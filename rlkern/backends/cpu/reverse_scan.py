# SPDX-License-Identifier: Apache-2.0
"""Hands reverse_scan to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.memory import fresh


def reverse_scan(bias: Tensor, decay: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} in each sequence, and x = 0 after its end."""
    x = fresh(bias.shape, bias)
    threads = torch.get_num_threads()
    _C.reverse_scan(bias=bias, decay=decay, cu_seqlens=cu_seqlens, x=x, threads=threads)
    return x
