# SPDX-License-Identifier: Apache-2.0
"""Brings (..., V) logits and (...) row vectors into the one form the backends take."""

import torch
from torch import Tensor

from rlkern.ops import check


def as_grid(op: str, logits: Tensor) -> Tensor:
    """Returns logits as a (B, T, V) view, never a copy: slices keep their strides."""
    if logits.ndim == 2:
        return logits.unsqueeze(0)
    if logits.ndim == 3:
        return logits
    try:
        return logits.view(1, -1, logits.shape[-1])
    except RuntimeError:
        raise ValueError(
            f"{op}: logits of more than three dimensions must be contiguous, "
            f"got shape {tuple(logits.shape)} with strides {logits.stride()}"
        ) from None


def row_vector(x: Tensor, grid: Tensor) -> Tensor:
    """Returns a row vector as a contiguous (B, T) tensor in the logits' accumulation dtype."""
    return _as_rows(x, grid, torch.float64 if grid.dtype == torch.float64 else torch.float32)


def token_vector(token: Tensor, grid: Tensor) -> Tensor:
    """Returns tokens as a contiguous (B, T) int64 tensor."""
    return _as_rows(token, grid, torch.int64)


def _as_rows(x: Tensor, grid: Tensor, dtype: torch.dtype) -> Tensor:
    # Each of these calls costs a microsecond even where it changes nothing: tiny batches feel it.
    if x.requires_grad:
        x = x.detach()
    if x.dtype != dtype:
        x = x.to(dtype)
    if x.shape != grid.shape[:2]:
        x = x.reshape(grid.shape[:2])
    return x if x.is_contiguous() else x.contiguous()


def inverse_temperature(
    op: str, temperature: float | Tensor, mask: Tensor | None, shape: torch.Size, grid: Tensor
) -> Tensor | None:
    """Returns 1 / temperature per row, or None where it is 1 everywhere by construction."""
    if isinstance(temperature, Tensor):
        check.tensor(op, "temperature", temperature, check.FLOATS)
        try:
            rows = temperature.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"{op}: temperature must broadcast to {tuple(shape)}, "
                f"got {check.describe(temperature)}"
            ) from None
        check.like(op, "temperature", rows, shape, grid, check.FLOATS)
        check.positive_values(op, "temperature", rows, mask)
        return row_vector(rows, grid).reciprocal()
    temperature = check.number(op, "temperature", temperature)
    if temperature <= 0:
        raise ValueError(f"{op}: temperature must be greater than 0, got {temperature}")
    if temperature == 1:
        return None
    dtype = torch.float64 if grid.dtype == torch.float64 else torch.float32
    return torch.full(grid.shape[:2], 1.0 / temperature, dtype=dtype, device=grid.device)
