# SPDX-License-Identifier: Apache-2.0
"""Hands segment_sum and its backward to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.cpu.arguments import addresses


def _count(mask: Tensor, offset: Tensor | None) -> int:
    return mask.shape[0] if offset is None else offset.numel() - 1


def segment_sum(x: Tensor, mask: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns (sum, count) over the counted elements of each sequence."""
    count = _count(mask, offset)
    total, counted = x.new_empty(count), x.new_empty(count)
    _C.segment_sum(
        count,
        x.numel(),
        x.dtype == torch.float64,
        *addresses(x, mask, offset, total, counted),
        torch.get_num_threads(),
    )
    return total, counted


def segment_sum_backward(grad: Tensor, mask: Tensor, offset: Tensor | None) -> Tensor:
    """Returns the gradient of every element."""
    grad_x = torch.empty(mask.shape, dtype=grad.dtype)
    _C.segment_sum_backward(
        _count(mask, offset),
        mask.numel(),
        grad.dtype == torch.float64,
        *addresses(grad, mask, offset, grad_x),
        torch.get_num_threads(),
    )
    return grad_x
