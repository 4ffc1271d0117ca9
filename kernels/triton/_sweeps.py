# SPDX-License-Identifier: Apache-2.0
"""The two sweeps over a row of logits: its sums, and its gradient.

With y = softcap·tanh(logit / softcap) and z = y · inv_temperature, a row is known by its maximum
and three sums in coordinates shifted by it, so that a common offset costs no digits:
    d = y·scale − shift           scale = inv_temperature / ln 2, shift = max·scale, rounded
    max      max y                row_max = max · inv_temperature
    total    Σ 2^d                log_sum = log total − δ · ln 2
    moment   Σ 2^d·d              entropy = log_sum − ln 2 · (moment/total − δ)
    squares  Σ (2^d)²             sum_pi_squared = squares/total²
The letters inside a block: x a logit, y and d as above, e = 2^d. A product and a difference rounded
once (fma) are one instruction; of the rounded shift they leave δ at the maximum, the d of it, which
is small and known. All of a row's d have the same δ in them, and the total of a row of which the
maximum is all there is is the same 2^δ to the last bit. What rounding leaves of δ in
moment/total, some 1e-13, shows in an entropy that is itself below 1e-11.

A thread keeps the sums of its own columns until the row has ended: the loops have no barrier, and
nothing in them passes from thread to thread. What a thread adds up, and in which order, depends on
the launch shape and the vector width alone, not on the batch or on where the row lies.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from rlkern.backends.triton._math import expm1, larger, tanh, tanh_slope
from rlkern.backends.triton._rows import last_block, load_last, tile_columns

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Maximum of no logits at all. Not −inf, which less itself is NaN: a logit below it counts as −inf.
LOWEST = tl.constexpr(-1e30)
# 2^FAINTEST is 0, and 0·FAINTEST too, where 0·(−inf) is NaN.
FAINTEST = tl.constexpr(-150.0)


class Sums(NamedTuple):
    """Maximum and sums, as the module defines them: of a row, or of each lane's part of it."""

    max: Any
    total: Any
    moment: Any
    squares: Any


class Results(NamedTuple):
    """What is left of a row, 0 if it does not count."""

    logprob: Any
    entropy: Any
    row_max: Any
    log_sum: Any


class Slopes(NamedTuple):
    """A row's gradient in y: 2^d·(constant + linear·d), and in the token's logit at_token."""

    max: Any
    scale: Any
    constant: Any
    linear: Any
    at_token: Any


@triton.jit
def bounded(x, softcap):
    """Returns softcap·tanh(x/softcap), also of a banned token."""
    if softcap is not None:
        x = softcap * tanh(x * (1.0 / softcap))
    return x


@triton.jit
def cap(x, softcap):
    """Returns y of logits; a banned token (−inf) stays banned."""
    if softcap is not None:
        return tl.where(x == float("-inf"), x, bounded(x, softcap))
    else:
        return x


@triton.jit
def cap_slope(x, softcap):
    """Returns by what the softcap multiplies the gradient of a logit."""
    if softcap is not None:
        return tanh_slope(x * (1.0 / softcap))
    else:
        return tl.zeros_like(x) + 1.0


@triton.jit
def rounded_product(x, y):
    """Returns x·y; what is added to it does not make the two one operation, with one rounding."""
    return tl.fma(x, y, 0.0)


@triton.jit
def exponents(y, top, scale):
    """Returns d of capped logits: of −inf a number whose power of 2 is 0, of NaN a NaN."""
    return larger(tl.fma(y, scale, -rounded_product(top, scale)), FAINTEST)


@triton.jit
def rescaling(top, new_top, scale):
    """Returns (by how much d is less than it was, the power of 2 of that) for a new maximum."""
    drop = larger(rounded_product(top, scale) - rounded_product(new_top, scale), FAINTEST)
    return drop, tl.exp2(drop)


@triton.jit
def rounding(top, scale):
    """Returns δ: the d of the maximum."""
    return tl.fma(top, scale, -rounded_product(top, scale))


@triton.jit
def empty_sums(TILE: tl.constexpr):
    """Returns the sums of no logits at all, of each lane."""
    LANES: tl.constexpr = TILE.lanes
    zero = tl.zeros((LANES,), tl.float32)
    return Sums(zero + LOWEST, zero, zero, zero)


@triton.jit
def lane_sum(x):
    """Returns the sum of a tile over what a lane has of it."""
    return tl.sum(tl.sum(x, 2), 0)


@triton.jit
def absorb_tile(y, sums, scale, SQUARES: tl.constexpr):
    """Returns each lane's sums after a block more; after nothing but −inf still (LOWEST, 0, 0, 0).

    A NaN need not show in the maximum, which a GPU may pass it by, but it does in the sums.
    """
    top = tl.maximum(sums.max, tl.max(tl.max(y, 2), 0))
    drop, keep = rescaling(sums.max, top, scale)
    d = exponents(y, top[None, :, None], scale)
    e = tl.exp2(d)
    squares = sums.squares
    if SQUARES:
        squares = squares * keep * keep + lane_sum(e * e)
    moment = (sums.moment + drop * sums.total) * keep + lane_sum(e * d)
    return Sums(top, sums.total * keep + lane_sum(e), moment, squares)


@triton.jit
def joined(sums, scale, SQUARES: tl.constexpr):
    """Returns the sums of the row, from those of its lanes."""
    top = tl.max(sums.max, 0)
    drop, keep = rescaling(sums.max, top, scale)
    # Products are rounded before a lane adds its own to its neighbour's: else the neighbour, which
    # would round the other one, would come to another sum.
    squares = tl.sum(rounded_product(sums.squares * keep, keep), 0) if SQUARES else 0.0
    moment = tl.sum(rounded_product(sums.moment + drop * sums.total, keep), 0)
    return Sums(top, tl.sum(rounded_product(sums.total, keep), 0), moment, squares)


@triton.jit
def absorb_blocks(row_ptr, end, row, softcap, SQUARES: tl.constexpr, TILE: tl.constexpr):
    """Returns each lane's sums of the full blocks of the row before end."""
    BLOCK: tl.constexpr = TILE.parts * TILE.lanes * TILE.vector
    sums = empty_sums(TILE)
    if not TILE.one_block:
        for start in tl.range(0, end, BLOCK, num_stages=1):
            x = tl.load(row_ptr + start + tile_columns(TILE)).to(tl.float32)
            sums = absorb_tile(cap(x, softcap), sums, row.inv_temperature * LOG2E, SQUARES)
    return sums


@triton.jit
def sweep_sums(row_ptr, row, softcap, V, SQUARES: tl.constexpr, TILE: tl.constexpr):
    """Returns (logits of the last block, sums of the row)."""
    end = tl.where(row.counted, last_block(V, TILE), 0)
    sums = absorb_blocks(row_ptr, end, row, softcap, SQUARES, TILE)
    x = load_last(row_ptr, row, V, TILE)
    scale = row.inv_temperature * LOG2E
    return x, joined(absorb_tile(cap(x, softcap), sums, scale, SQUARES), scale, SQUARES)


@triton.jit
def row_results(row, softcap, sums):
    """Returns the Results of a row's sums."""
    delta = rounding(sums.max, row.inv_temperature * LOG2E)
    total = tl.where(row.counted, sums.total, 1.0)
    # Exactly 0 where the maximum is all there is.
    log_sum = tl.where(total == tl.exp2(delta), 0.0, tl.log(total) - delta * LN2)
    above = (cap(row.logit, softcap) - sums.max) * row.inv_temperature
    entropy = log_sum - LN2 * (sums.moment / total - delta)
    # The maximum of nothing but −inf is LOWEST; the total of a finite maximum is not 0.
    row_max = tl.where(total == 0, float("-inf"), sums.max * row.inv_temperature)
    # What the product loses in rounding is kept in the other half of the log-sum-exp, which of
    # nothing but −inf is NaN, like all else of the row.
    lost = tl.where(total == 0, float("nan"), tl.fma(sums.max, row.inv_temperature, -row_max))
    return Results(
        tl.where(row.counted, above - log_sum, 0.0),
        tl.where(row.counted, entropy, 0.0),
        tl.where(row.counted, row_max, 0.0),
        tl.where(row.counted, log_sum + lost, 0.0),
    )


@triton.jit
def gradient_slopes(row, softcap, top, results, d_logprob, d_entropy, d_lse):
    """Returns the Slopes of a row, given what the loss is in its logprob, entropy and log-sum-exp.

    In z it is  p_j·(d_lse − d_logprob − d_entropy·(log p_j + H)) + d_logprob·[j = token].
    At the token the first factor of d_logprob is 1 − p, which cancels: expm1 does not.
    top is row_max / inv_temperature, as exact as it may be: what it is off by is known.
    """
    logprob, entropy = results.logprob, results.entropy
    scale = row.inv_temperature * LOG2E
    delta = rounding(top, scale)
    log_sum = results.log_sum - tl.fma(top, row.inv_temperature, -results.row_max)
    p_unit = tl.exp(-log_sum - LN2 * delta) * row.inv_temperature
    surprise = entropy - log_sum - LN2 * delta  # less d
    constant = (d_lse - d_logprob - d_entropy * surprise) * p_unit
    p = tl.exp(logprob)
    # p·log p is 0 for a token of probability 0.
    token_entropy = tl.where(p > 0, p * (logprob + entropy), 0.0)
    at_token = -d_logprob * expm1(logprob) + d_lse * p - d_entropy * token_entropy
    at_token = at_token * row.inv_temperature * cap_slope(row.logit, softcap)
    return Slopes(top, scale, constant, -d_entropy * p_unit * LN2, at_token)


@triton.jit
def block_gradient(x, softcap, slopes):
    """Returns the gradient of logits that are not the token's; a logit of −inf gets 0."""
    d = exponents(bounded(x, softcap), slopes.max, slopes.scale)
    grad = tl.exp2(d) * (slopes.constant + slopes.linear * d)
    if softcap is not None:  # its slope is 0 at −inf
        grad = grad * cap_slope(x, softcap)
    return grad


@triton.jit
def store_block(grad_row, start, grad, TILE: tl.constexpr):
    """Writes a full block of the gradient."""
    grad = grad.to(grad_row.dtype.element_ty)
    # Nothing reads it again soon: leave the cache to rows that wait for their second sweep.
    tl.store(grad_row + start + tile_columns(TILE), grad, eviction_policy="evict_first")


@triton.jit
def store_last(grad_row, V, grad, TILE: tl.constexpr):
    """Writes the last block of the gradient."""
    columns = last_block(V, TILE) + tile_columns(TILE)
    grad = grad.to(grad_row.dtype.element_ty)
    inside = columns < V // TILE.vector * TILE.vector
    tl.store(grad_row + columns, grad, mask=inside, eviction_policy="evict_first")


@triton.jit
def zero_tile(TILE: tl.constexpr):
    """Returns the gradient of a block that has none."""
    PARTS: tl.constexpr = TILE.parts
    LANES: tl.constexpr = TILE.lanes
    VECTOR: tl.constexpr = TILE.vector
    return tl.zeros((PARTS, LANES, VECTOR), tl.float32)


@triton.jit
def store_zeros(grad_row, end, TILE: tl.constexpr):
    """Writes zeros as the gradient of the full blocks before end."""
    BLOCK: tl.constexpr = TILE.parts * TILE.lanes * TILE.vector
    if not TILE.one_block:
        for start in tl.range(0, end, BLOCK, num_stages=1):
            store_block(grad_row, start, zero_tile(TILE), TILE)


@triton.jit
def store_own(grad_row, row, slopes):
    """Writes the gradient of the token's logit over what the sweep has left there."""
    tl.debug_barrier()  # another warp's store is to come first
    at_token = slopes.at_token.to(grad_row.dtype.element_ty)
    tl.store(grad_row + row.token, at_token, mask=row.token >= 0)


@triton.jit
def sweep_gradient(grad_row, row_ptr, x, row, softcap, slopes, V, TILE: tl.constexpr):
    """Writes the gradient of a whole row, backwards: x is its last block.

    Zeros for a row that does not count, which is not read.
    """
    BLOCK: tl.constexpr = TILE.parts * TILE.lanes * TILE.vector
    last = last_block(V, TILE)
    store_last(grad_row, V, block_gradient(x, softcap, slopes), TILE)
    if not TILE.one_block:
        # Each iteration writes its own columns only, so loads may run ahead of stores.
        for back in tl.range(0, tl.where(row.counted, last, 0), BLOCK, num_stages=1):
            start = last - BLOCK - back
            x = tl.load(row_ptr + start + tile_columns(TILE)).to(tl.float32)
            store_block(grad_row, start, block_gradient(x, softcap, slopes), TILE)
    store_zeros(grad_row, tl.where(row.counted, 0, last), TILE)
    store_own(grad_row, row, slopes)
