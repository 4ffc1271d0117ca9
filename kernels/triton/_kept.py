# SPDX-License-Identifier: Apache-2.0
"""Rows of which only a kept set could be sampled: K ids are read instead of V columns.

A row's ids are unique; −1 is an unused place, and a row of nothing but −1 keeps the whole
vocabulary. Ids below −1 are kept in another rank's slice. The token always belongs to the set,
listed or not, so it is taken apart from the list.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.triton._rows import Tile, last_block, launch_shape, launch_tile
from rlkern.backends.triton._sweeps import (
    LOG2E,
    LOWEST,
    Sums,
    block_gradient,
    cap,
    exponents,
    rescaling,
    rounding,
    store_last,
    store_own,
    store_zeros,
    zero_tile,
)

# 4 to 8 ids of 64 bits per thread; few kept sets are longer.
_BLOCK = 1024


class Launch(NamedTuple):
    """The constants of a compiled kernel: how a block lies in the threads, ids of a block."""

    tile: Tile
    kept_block: int


def launch_options(*tensors: Tensor) -> dict[str, Any]:
    """Returns the constants and options of a launch over the rows of these tensors.

    >>> options = launch_options(torch.zeros(1, 1, 21))
    >>> options["LAUNCH"].kept_block, options["num_warps"]
    (128, 1)
    """
    shape = launch_shape(tensors[0].shape[2], tensors[0].element_size())
    launch = Launch(launch_tile(shape, *tensors), min(shape.block, _BLOCK))
    return {"LAUNCH": launch, "num_warps": shape.warps, "enable_fp_fusion": True}


def scratch_for(keep: Tensor) -> Tensor:
    """Returns room for the kept logits: in place, zeros overwrite them before their gradients."""
    return torch.empty(keep.shape, dtype=torch.float32, device=keep.device)


@triton.jit
def kept_length(keep_row, K, counted, BLOCK: tl.constexpr):
    """Returns K, or 0 for a row that does not count or that keeps everything."""
    end = tl.where(counted, K, 0)
    restricted = tl.zeros((), tl.int32)
    for start in range(0, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids = tl.load(keep_row + at, mask=at < end, other=-1)
        restricted = tl.maximum(restricted, tl.max((ids != -1).to(tl.int32), 0))
    return tl.where(restricted > 0, end, 0)


@triton.jit
def kept_block(keep_row, at, K, token, V):
    """Returns (ids, which of them are columns of this row other than the token)."""
    ids = tl.load(keep_row + at, mask=at < K, other=-1)
    return ids, (ids >= 0) & (ids < V) & (ids != token)


@triton.jit
def absorb_kept(y, sums, scale, SQUARES: tl.constexpr):
    """Returns the sums of the row after a block of kept ids more."""
    top = tl.maximum(sums.max, tl.max(y, 0))
    drop, keep = rescaling(sums.max, top, scale)
    d = exponents(y, top, scale)
    e = tl.exp2(d)
    squares = sums.squares
    if SQUARES:
        squares = squares * keep * keep + tl.sum(e * e, 0)
    moment = (sums.moment + drop * sums.total) * keep + tl.sum(e * d, 0)
    return Sums(top, sums.total * keep + tl.sum(e, 0), moment, squares)


@triton.jit
def kept_sums(
    row_ptr, keep_row, scratch_row, row, softcap, K, V,
    SQUARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns the sums of the token and K kept ids, whose logits it leaves in the scratch.

    Of no ids, those of no logits at all.
    """
    own = cap(row.logit, softcap)
    present = (row.token >= 0) & (K > 0) & (own != float("-inf"))
    # Of the token alone; NaN if its logit is.
    d = rounding(own, row.inv_temperature * LOG2E)
    e = tl.where(present, tl.exp2(d), 0.0)
    sums = Sums(tl.where(present, own, LOWEST), e, tl.where(present, e * d, 0.0), e * e)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids, valid = kept_block(keep_row, at, K, row.token, V)
        x = tl.load(row_ptr + ids, mask=valid, other=float("-inf")).to(tl.float32)
        if scratch_row is not None:
            tl.store(scratch_row + at, x, mask=at < K)
        sums = absorb_kept(cap(x, softcap), sums, row.inv_temperature * LOG2E, SQUARES)
    return sums


@triton.jit
def store_kept_gradient(
    grad_row, keep_row, scratch_row, row, softcap, slopes, K, V,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes a row of zeros, and over them the gradient of the kept ids and of the token."""
    # In place the zeros overwrite logits that other warps have still to copy to the scratch.
    tl.debug_barrier()
    store_last(grad_row, V, zero_tile(TILE), TILE)
    store_zeros(grad_row, last_block(V, TILE), TILE)
    # Other warps wrote the zeros, and the scratch, that this one meets.
    store_own(grad_row, row, slopes)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids, valid = kept_block(keep_row, at, K, row.token, V)
        x = tl.load(scratch_row + at, mask=at < K, other=float("-inf"))
        grad = block_gradient(x, softcap, slopes)
        tl.store(grad_row + ids, grad.to(grad_row.dtype.element_ty), mask=valid)
