# SPDX-License-Identifier: Apache-2.0
"""Eager definition of masked whitening."""

from collections.abc import Callable

import torch
from torch import Tensor

EPS = 1e-8


def _same(x: Tensor) -> Tensor:
    return x


def center(
    x: Tensor, mask: Tensor, *, reduce: Callable[[Tensor], Tensor] = _same
) -> tuple[Tensor, Tensor]:
    """Returns x − mean where mask is True and 0 elsewhere, and the number of counted elements.

    The sum is taken in float64; `reduce` adds that of other parts of the batch to it.
    """
    total = torch.where(mask, x, 0.0).sum(dtype=torch.float64)
    total, count = reduce(torch.stack([total, mask.sum().to(torch.float64)]))
    mean = total / count.clamp(min=1)
    return torch.where(mask, x - mean.to(x.dtype), 0.0), count


def whiten(
    x: Tensor,
    mask: Tensor,
    *,
    eps: float = EPS,
    ddof: int = 1,
    reduce: Callable[[Tensor], Tensor] = _same,
) -> Tensor:
    """Returns (x − mean) / √(variance + eps) where mask is True, 0 elsewhere.

    The sums are taken in float64; `reduce` adds those of other parts of the batch to them.
    """
    centered, count = center(x, mask, reduce=reduce)
    squares = reduce((centered.to(torch.float64).square()).sum())
    variance = squares / (count - ddof).clamp(min=1)
    return centered * (variance + eps).rsqrt().to(x.dtype)
