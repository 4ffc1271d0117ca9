# SPDX-License-Identifier: Apache-2.0
"""Eager definition of sums over sequences, padded or packed, accumulated in float64."""

import torch
from torch import Tensor


def _bounds(x: Tensor, offset: Tensor | None) -> Tensor:
    """Returns where each sequence begins and the last one ends in the flattened x."""
    if offset is not None:
        return offset
    rows, length = x.shape
    return torch.arange(rows + 1, device=x.device) * length


def _sums(x: Tensor, bounds: Tensor) -> Tensor:
    return torch.segment_reduce(x.reshape(-1).double(), "sum", offsets=bounds, initial=0, axis=0)


def segment_sum(x: Tensor, mask: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns (sum, count) over the counted elements of each sequence.

    Without offset the sequences are the rows of x (B, T); with it they lie one after another in
    x (N,), sequence i in x[offset[i]:offset[i+1]].
    """
    bounds = _bounds(x, offset)
    total = _sums(torch.where(mask, x, 0.0), bounds)
    return total.to(x.dtype), _sums(mask, bounds).to(x.dtype)


def segment_sum_backward(grad: Tensor, mask: Tensor, offset: Tensor | None) -> Tensor:
    """Returns the gradient of every element: that of its sequence's sum, 0 where masked."""
    if offset is None:
        return torch.where(mask, grad[:, None], 0.0)
    rows = torch.repeat_interleave(offset.diff(), output_size=mask.numel())
    return torch.where(mask, grad[rows], 0.0)
