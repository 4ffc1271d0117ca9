# SPDX-License-Identifier: Apache-2.0
"""Log-probability of given tokens with the companions of their rows, from one read of each row."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_logprob import Companions, Scored, Softmax
from rlkern.backends.triton._launch import kernel
from rlkern.backends.triton._rows import (
    counted_row,
    last_block,
    load_last,
    open_row,
    row_start,
    tile_columns,
    vector_columns,
)
from rlkern.backends.triton._sweeps import (
    LOG2E,
    absorb_tile,
    cap,
    empty_sums,
    joined,
    lane_sum,
)
from rlkern.backends.triton.token_logprob import forward_launch, store_scored, token_logprob


class Seen(NamedTuple):
    """What each lane has seen of a row: Σ y, how many logits beat the token's, their maxima."""

    total: Any
    beaten: Any
    top: Any
    top_before: Any  # of the blocks before the token's


@triton.jit
def see_tile(x, y, seen, row):
    """Returns what has been seen after a block more. A NaN beats any token."""
    beaten = lane_sum(tl.where(x <= row.logit, 0.0, 1.0))
    top = tl.maximum(seen.top, tl.max(tl.max(x, 2), 0))
    return Seen(seen.total + lane_sum(y), seen.beaten + beaten, top, seen.top_before)


@triton.jit
def top_before_token(row_ptr, row, TILE: tl.constexpr):
    """Returns the maximum of the logits in the token's block before the token."""
    BLOCK: tl.constexpr = TILE.parts * TILE.lanes * TILE.vector
    token = row.token.to(tl.int32)
    columns = token // BLOCK * BLOCK + tile_columns(TILE)
    end = (token + TILE.vector - 1) // TILE.vector * TILE.vector  # whole accesses
    x = tl.load(row_ptr + columns, mask=columns < end, other=float("-inf")).to(tl.float32)
    x = tl.where(columns < token, x, float("-inf"))
    return tl.max(tl.max(tl.max(x, 2), 0), 0)


@triton.jit
def store_companions(companions, i, row, V, scale, seen, top_before):
    """Writes the companions of row i."""
    total = tl.sum(seen.total, 0) * scale
    tl.store(companions.mean_logit + i, tl.where(row.counted, total / V, 0.0))
    # The first of nothing but −inf is the first.
    first = (row.token == 0) | (top_before < row.logit)
    is_argmax = row.counted & first & (tl.sum(seen.beaten, 0) == 0)
    tl.store(companions.is_argmax + i, is_argmax)


@kernel
def companion_forward(
    logits_ptr, tokens, softmax, scored, companions, T: tl.int64, V: tl.int32,
    stride_b: tl.int64, stride_t: tl.int64, LAUNCH: tl.constexpr,
):  # fmt: skip
    """One program per row; without scored (kept sets have their own kernel) companions alone.

    - reads the row once, and once more the token's block as far as the token
    - writes a float32 scalar and a bool, and what token_logprob_forward writes
    - never materialises probabilities; a row that does not count is not read
    """
    TILE: tl.constexpr = LAUNCH.tile
    BLOCK: tl.constexpr = TILE.parts * TILE.lanes * TILE.vector
    softcap = softmax.softcap
    i = tl.program_id(0).to(tl.int64)
    counted = counted_row(tokens.mask, i)
    row_ptr = row_start(logits_ptr, i, T, stride_b, stride_t, TILE.vector)
    row = open_row(row_ptr, tokens.token, softmax, i, counted, V)
    # Before the sweep, whose blocks would be in registers beside this one.
    top_before = top_before_token(row_ptr, row, TILE)
    scale = row.inv_temperature * LOG2E
    last = last_block(V, TILE)
    sums = empty_sums(TILE)
    zero = tl.zeros_like(sums.total)
    seen = Seen(zero, zero, zero - float("inf"), zero - float("inf"))
    if not TILE.one_block:
        for start in tl.range(0, tl.where(counted, last, 0), BLOCK, num_stages=1):
            x = tl.load(row_ptr + start + tile_columns(TILE)).to(tl.float32)
            y = cap(x, softcap)
            seen = see_tile(x, y, seen, row)
            before = tl.where(start + BLOCK <= row.token, seen.top, seen.top_before)
            seen = Seen(seen.total, seen.beaten, seen.top, before)
            if scored is not None:
                sums = absorb_tile(y, sums, scale, True)
    x = load_last(row_ptr, row, V, TILE)
    y = cap(x, softcap)
    inside = last + vector_columns(TILE) < V  # of all its vector, or of none
    seen = see_tile(x, tl.where(inside, y, 0.0), seen, row)
    if scored is not None:
        sums = joined(absorb_tile(y, sums, scale, True), scale, True)
        store_scored(scored, i, row, softcap, sums)
    top_before = tl.maximum(top_before, tl.max(seen.top_before, 0))
    store_companions(companions, i, row, V, row.inv_temperature, seen, top_before)


def token_logprob_companions(
    logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax
) -> tuple[Scored, Companions]:
    """Returns what is left of each row, and its companions, as the reference."""
    companions = Companions(
        torch.empty_like(token, dtype=torch.float32), torch.empty_like(token, dtype=torch.bool)
    )
    if softmax.keep is None:
        scored = Scored(*(torch.empty_like(token, dtype=torch.float32) for _ in Scored._fields))
        into = scored
    else:  # a kept set is read by its ids, the row's logits are all read
        scored, into = token_logprob(logits, token, mask, softmax), None
    rows = token.numel()
    if rows:
        whole = softmax._replace(keep=None)
        given, sizes, options = forward_launch(logits, token, mask, whole)
        with torch.cuda.device_of(logits):
            companion_forward[(rows,)](*given, into, companions, *sizes, **options)
    return scored, companions
