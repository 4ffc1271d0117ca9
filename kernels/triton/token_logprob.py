# SPDX-License-Identifier: Apache-2.0
"""Log-probability of given tokens, with entropy and log-sum-exp, and the backward."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_logprob import Scored, Softmax, Statistics, Upstream
from rlkern.backends.triton._kept import (
    kept_length,
    kept_sums,
    launch_options,
    scratch_for,
    store_kept_gradient,
)
from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._rows import (
    Row,
    counted_row,
    load_last,
    open_row,
    row_scalar,
    row_start,
    row_strides,
    softmax_argument,
)
from rlkern.backends.triton._sweeps import (
    Results,
    Sums,
    cap,
    gradient_slopes,
    row_results,
    sweep_gradient,
    sweep_sums,
)


class Tokens(NamedTuple):
    """The tokens, and which of them count (all without a mask)."""

    token: Tensor
    mask: Tensor | None


@triton.jit
def store_scored(scored, i, row, softcap, sums):
    """Writes what is left of row i."""
    results = row_results(row, softcap, sums)
    tl.store(scored.logprob + i, results.logprob)
    tl.store(scored.entropy + i, results.entropy)
    tl.store(scored.row_max + i, results.row_max)
    tl.store(scored.log_sum + i, results.log_sum)
    total = tl.where(row.counted, sums.total, 1.0)
    squares = tl.where(row.counted, sums.squares / (total * total), 0.0)
    tl.store(scored.sum_pi_squared + i, squares)


@triton.jit
def either(first, some, others):
    """Returns the one or the other sums."""
    return Sums(
        tl.where(first, some.max, others.max),
        tl.where(first, some.total, others.total),
        tl.where(first, some.moment, others.moment),
        tl.where(first, some.squares, others.squares),
    )


@kernel
def token_logprob_forward(
    logits_ptr, tokens, softmax, scored, T: tl.int64, V: tl.int32,
    stride_b: tl.int64, stride_t: tl.int64, LAUNCH: tl.constexpr,
):  # fmt: skip
    """One program per row.

    - reads the row once, and once more one element of it: the token's
    - writes five float32 scalars
    - never materialises probabilities; a row that does not count is not read
    """
    TILE: tl.constexpr = LAUNCH.tile
    softcap = softmax.softcap
    i = tl.program_id(0).to(tl.int64)
    counted = counted_row(tokens.mask, i)
    row_ptr = row_start(logits_ptr, i, T, stride_b, stride_t, TILE.vector)
    row = open_row(row_ptr, tokens.token, softmax, i, counted, V)
    _, sums = sweep_sums(row_ptr, row, softcap, V, True, TILE)
    store_scored(scored, i, row, softcap, sums)


@kernel
def kept_token_logprob_forward(
    logits_ptr, tokens, softmax, scored, T: tl.int64, V: tl.int32,
    stride_b: tl.int64, stride_t: tl.int64, K: tl.int32, LAUNCH: tl.constexpr,
):  # fmt: skip
    """One program per row.

    - reads the ids of the row, their columns and its token's, or as token_logprob_forward does the
      row that keeps everything
    - writes five float32 scalars
    - never materialises a mask of the vocabulary
    """
    TILE: tl.constexpr = LAUNCH.tile
    KEPT_BLOCK: tl.constexpr = LAUNCH.kept_block
    softcap = softmax.softcap
    i = tl.program_id(0).to(tl.int64)
    counted = counted_row(tokens.mask, i)
    row_ptr = row_start(logits_ptr, i, T, stride_b, stride_t, TILE.vector)
    row = open_row(row_ptr, tokens.token, softmax, i, counted, V)
    keep_row = softmax.keep + i * K
    # Two loops, of which one is empty: as branches they would need scalar registers gfx942 lacks.
    kept = kept_length(keep_row, K, counted, KEPT_BLOCK)
    some = kept_sums(row_ptr, keep_row, None, row, softcap, kept, V, True, KEPT_BLOCK)
    whole = Row(counted & (kept == 0), row.token, row.logit, row.inv_temperature)
    _, every = sweep_sums(row_ptr, whole, softcap, V, True, TILE)
    sums = either(kept > 0, some, every)
    store_scored(scored, i, row, softcap, sums)


@triton.jit
def slopes_of_row(i, row, softcap, statistics, upstream):
    """Returns the Slopes of row i, from what the forward has left of it."""
    row_max = tl.load(statistics.row_max + i, mask=row.counted, other=0.0)
    log_sum = tl.load(statistics.log_sum + i, mask=row.counted, other=0.0)
    entropy = tl.load(statistics.entropy + i, mask=row.counted, other=0.0)
    above = tl.fma(cap(row.logit, softcap), row.inv_temperature, -row_max)
    logprob = tl.where(row.counted, above - log_sum, 0.0)
    d_logprob = row_scalar(upstream.logprob, i, row.counted, 0.0)
    d_entropy = row_scalar(upstream.entropy, i, row.counted, 0.0)
    d_lse = row_scalar(upstream.lse, i, row.counted, 0.0)
    results = Results(logprob, entropy, row_max, log_sum)
    top = row_max / row.inv_temperature
    return gradient_slopes(row, softcap, top, results, d_logprob, d_entropy, d_lse)


@kernel
def token_logprob_backward_kernel(
    logits_ptr, grad_ptr, tokens, softmax, statistics, upstream, T: tl.int64, V: tl.int32,
    stride_b: tl.int64, stride_t: tl.int64, grad_stride_b: tl.int64, grad_stride_t: tl.int64,
    LAUNCH: tl.constexpr,
):  # fmt: skip
    """One program per row; grad_ptr may be logits_ptr.

    - reads the row once, its token's logit, and the forward's scalars
    - writes each element of the gradient once, the token's twice; zeros where the row does not
      count
    - never materialises probabilities or a one-hot row
    """
    TILE: tl.constexpr = LAUNCH.tile
    softcap = softmax.softcap
    i = tl.program_id(0).to(tl.int64)
    counted = counted_row(tokens.mask, i)
    row_ptr = row_start(logits_ptr, i, T, stride_b, stride_t, TILE.vector)
    grad_row = row_start(grad_ptr, i, T, grad_stride_b, grad_stride_t, TILE.vector)
    row = open_row(row_ptr, tokens.token, softmax, i, counted, V)
    slopes = slopes_of_row(i, row, softcap, statistics, upstream)
    x = load_last(row_ptr, row, V, TILE)
    sweep_gradient(grad_row, row_ptr, x, row, softcap, slopes, V, TILE)


@kernel
def kept_token_logprob_backward_kernel(
    logits_ptr, grad_ptr, tokens, softmax, scratch_ptr, statistics, upstream,
    T: tl.int64, V: tl.int32, stride_b: tl.int64, stride_t: tl.int64, grad_stride_b: tl.int64,
    grad_stride_t: tl.int64, K: tl.int32, LAUNCH: tl.constexpr,
):  # fmt: skip
    """One program per row; grad_ptr may be logits_ptr.

    - reads the ids of the row, their columns, its token's logit, and the forward's scalars; a row
      that keeps everything, or does not count, as token_logprob_backward_kernel does
    - writes zeros and over them the gradient of the kept columns
    - never materialises a mask of the vocabulary
    """
    TILE: tl.constexpr = LAUNCH.tile
    KEPT_BLOCK: tl.constexpr = LAUNCH.kept_block
    softcap = softmax.softcap
    i = tl.program_id(0).to(tl.int64)
    counted = counted_row(tokens.mask, i)
    row_ptr = row_start(logits_ptr, i, T, stride_b, stride_t, TILE.vector)
    grad_row = row_start(grad_ptr, i, T, grad_stride_b, grad_stride_t, TILE.vector)
    row = open_row(row_ptr, tokens.token, softmax, i, counted, V)
    keep_row, scratch_row = softmax.keep + i * K, scratch_ptr + i * K
    kept = kept_length(keep_row, K, counted, KEPT_BLOCK)
    slopes = slopes_of_row(i, row, softcap, statistics, upstream)
    if kept > 0:
        kept_sums(row_ptr, keep_row, scratch_row, row, softcap, K, V, False, KEPT_BLOCK)
        store_kept_gradient(
            grad_row, keep_row, scratch_row, row, softcap, slopes, K, V, TILE, KEPT_BLOCK
        )
    else:
        x = load_last(row_ptr, row, V, TILE)
        sweep_gradient(grad_row, row_ptr, x, row, softcap, slopes, V, TILE)


def forward_launch(logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax):
    """Returns (the first three arguments, the last four, the options) of a forward."""
    _, T, V = logits.shape
    given = (logits, aligned(Tokens(token, mask)), softmax_argument(softmax))
    return given, (T, V, *row_strides(logits)), launch_options(logits)


def token_logprob(logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax) -> Scored:
    """Returns what is left of each row, as the reference; a bad token gives a logprob of NaN."""
    scored = Scored(*(torch.empty_like(token, dtype=torch.float32) for _ in Scored._fields))
    rows = token.numel()
    if not rows:
        return scored
    given, sizes, options = forward_launch(logits, token, mask, softmax)
    with torch.cuda.device_of(logits):
        if softmax.keep is None:
            token_logprob_forward[(rows,)](*given, scored, *sizes, **options)
        else:
            kept = softmax.keep.shape[2]
            kept_token_logprob_forward[(rows,)](*given, scored, *sizes, kept, **options)
    return scored


def token_logprob_backward(
    logits: Tensor,
    token: Tensor,
    mask: Tensor | None,
    softmax: Softmax,
    statistics: Statistics,
    upstream: Upstream,
    grad_logits: Tensor,
) -> None:
    """Writes the gradient of Σ (logprob·d_logprob + entropy·d_entropy + lse·d_lse), d_ upstream."""
    rows = token.numel()
    if not rows:
        return
    _, T, V = logits.shape
    given = (logits, grad_logits, aligned(Tokens(token, mask)), softmax_argument(softmax))
    scalars = (aligned(statistics), aligned(upstream))
    sizes = (T, V, *row_strides(logits), *row_strides(grad_logits))
    options, keep = launch_options(logits, grad_logits), softmax.keep
    with torch.cuda.device_of(logits):
        if keep is None:
            token_logprob_backward_kernel[(rows,)](*given, *scalars, *sizes, **options)
        else:
            kept_token_logprob_backward_kernel[(rows,)](
                *given, scratch_for(keep), *scalars, *sizes, keep.shape[2], **options
            )
