# SPDX-License-Identifier: Apache-2.0
"""Hands segment_sum and its backward to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]


def segment_sum(x: Tensor, mask: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns (sum, count) over the counted elements of each sequence."""
    count = mask.shape[0] if offset is None else offset.numel() - 1
    total, counted = x.new_empty(count), x.new_empty(count)
    _C.segment_sum(
        x=x,
        mask=mask,
        offset=offset,
        total=total,
        counted=counted,
        threads=torch.get_num_threads(),
    )
    return total, counted


def segment_sum_backward(grad: Tensor, mask: Tensor, offset: Tensor | None) -> Tensor:
    """Returns the gradient of every element."""
    grad_x = torch.empty(mask.shape, dtype=grad.dtype)
    threads = torch.get_num_threads()
    _C.segment_sum_backward(grad=grad, mask=mask, offset=offset, grad_x=grad_x, threads=threads)
    return grad_x
