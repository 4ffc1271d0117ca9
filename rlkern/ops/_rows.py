# SPDX-License-Identifier: Apache-2.0
"""Brings (..., V) logits and (...) row vectors into the one form the backends take."""

import torch
from torch import Tensor

from rlkern.backends.eager.levels import Sequences
from rlkern.backends.eager.token_logprob import ACCUMULATION_DTYPE, Softmax
from rlkern.backends.eager.token_objective import Rows
from rlkern.ops import _check as check

# The temperature, the cap and the kept set in the schema of an operation.
SOFTMAX = "Tensor? inv_temperature, float softcap, Tensor? keep"


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


def row_vectors(rows: Rows, grid: Tensor) -> Rows:
    """Returns the rows as contiguous (B, T) tensors in the logits' accumulation dtype."""
    dtype = ACCUMULATION_DTYPE[grid.dtype]
    return rows.each(lambda x: _as_rows(x, grid, dtype))


def token_vector(token: Tensor, grid: Tensor) -> Tensor:
    """Returns tokens as a contiguous (B, T) int64 tensor."""
    return _as_rows(token, grid, torch.int64)


def mask_vector(mask: Tensor | None, grid: Tensor) -> Tensor | None:
    """Returns a mask as a contiguous (B, T) tensor."""
    return None if mask is None else _as_rows(mask, grid, torch.bool)


def of_each_token(
    op: str, name: str, x: Tensor, shape: torch.Size, bounds: Tensor | None
) -> Tensor:
    """Returns x (shape) of each token, given that or one number per sequence: (B,) or (B, 1)."""
    check.tensor(op, name, x, check.FLOATS)
    if x.shape == shape:
        return x
    count = shape[0] if bounds is None else bounds.numel() - 1
    per_sequence = x.shape in ((count,), (count, 1)) and (bounds is not None or len(shape) > 1)
    if per_sequence and bounds is not None:
        return x.reshape(-1)[Sequences(shape, bounds).of_row]
    if per_sequence:
        return x.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    expected = f"{tuple(shape)}, {(count,)} or {(count, 1)}"
    raise ValueError(f"{op}: {name} must be {expected}, got {check.describe(x)}")


def make_softmax(
    op: str,
    grid: Tensor,
    shape: torch.Size,
    mask: Tensor | None,
    temperature: float | Tensor,
    softcap: float | None,
    keep: Tensor | None,
) -> Softmax:
    """Returns the checked distribution of rows in the form the backends take."""
    cap = 0.0
    if softcap is not None:
        cap = check.number(op, "softcap", softcap)
        if cap <= 0:
            raise ValueError(f"{op}: softcap must be greater than 0 or None, got {softcap}")
    if keep is not None:
        keep = _kept_ids(op, keep, shape, grid, mask)
    return Softmax(inverse_temperature(op, temperature, mask, shape, grid), cap, keep)


def _kept_ids(op: str, keep: Tensor, shape: torch.Size, grid: Tensor, mask: Tensor | None):
    check.tensor(op, "keep", keep, check.INTEGERS)
    if keep.shape[:-1] != shape or keep.shape[-1] == 0 or keep.device != grid.device:
        expected = f"{(*shape, 'K')} with K > 0 on {grid.device}".replace("'", "")
        raise ValueError(f"{op}: keep must be {expected}, got {check.describe(keep)}")
    check.kept_values(op, keep, mask, grid.shape[-1])
    return keep.to(torch.int64).reshape(*grid.shape[:2], keep.shape[-1]).contiguous()


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
        return _as_rows(rows, grid, ACCUMULATION_DTYPE[grid.dtype]).reciprocal()
    temperature = check.number(op, "temperature", temperature)
    if temperature <= 0:
        raise ValueError(f"{op}: temperature must be greater than 0, got {temperature}")
    if temperature == 1:
        return None
    like: dict = {"dtype": ACCUMULATION_DTYPE[grid.dtype], "device": grid.device}
    if torch.compiler.is_compiling():  # a product keeps the number out of the guards
        return torch.ones(grid.shape[:2], **like) * (1.0 / temperature)
    return torch.full(grid.shape[:2], 1.0 / temperature, **like)
