# SPDX-License-Identifier: Apache-2.0
"""What every kernel over the vocabulary shares: launch shapes, row addressing, and the two sweeps.

With z = softcap·tanh(logit / softcap) · inv_temperature, a row is known by its maximum and three
sums in coordinates shifted by it, so that a common offset of the logits costs no digits:
    max      max z
    total    Σ exp(z − max)              log_sum = log total
    moment   Σ exp(z − max)·(z − max)    entropy = log_sum − moment/total
    squares  Σ exp(z − max)²             sum_pi_squared = squares/total²
The letters inside a block: x a logit, z as above, d = z − max, e = exp(d).
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.triton._launch import aligned
from rlkern.backends.triton._math import expm1, tanh, tanh_slope

# (largest V, columns per block, warps). A row that fits one block is read once and kept on chip.
# From register counts of compiled kernels, not from measurements: 8 to 16 columns per thread give
# 16-byte accesses and no spills. Rows of up to 65 536 columns are short enough for an L2 cache to
# hold two or more per multiprocessor, longer ones are not: those get the larger program.
SHAPES = ((128, 128, 1), (1024, 1024, 4), (65536, 4096, 8), (1 << 31, 8192, 16))


class Row(NamedTuple):
    """What is known of a row before it is swept; its token is −1 if it has none."""

    counted: Any
    length: Any  # columns to read: none of a row that does not count
    token: Any
    logit: Any  # the token's
    inv_temperature: Any


class Sums(NamedTuple):
    """A row's maximum and sums, as the module defines them."""

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
    """A row's gradient in z: exp(d)·(constant + linear·d), and in the token's logit at_token."""

    row_max: Any
    constant: Any
    linear: Any
    at_token: Any


def launch_shape(vocabulary: int) -> tuple[int, int]:
    """Returns (columns per block, warps) for rows of this length.

    >>> launch_shape(21), launch_shape(151936)
    ((128, 1), (8192, 16))
    """
    return next((block, warps) for limit, block, warps in SHAPES if vocabulary <= limit)


def row_strides(x: Tensor) -> tuple[int, int]:
    """Returns the strides of a (B, T, V) tensor's rows; 0 for a dimension of 1 (any would do)."""
    return tuple(0 if x.shape[i] == 1 else x.stride(i) for i in (0, 1))  # type: ignore[return-value]


def vector_width(*tensors: Tensor) -> int:
    """Returns the elements in 16 bytes if all rows begin and end at a multiple of that, else 1.

    The compiler cannot know it of run-time arguments; without it each access is one element wide.
    """
    width = max(16 // x.element_size() for x in tensors)
    numbers = [n for x in tensors for n in (x.shape[2], *row_strides(x))]
    return width if all(n % width == 0 for n in numbers) else 1


def softmax_argument(softmax: Softmax) -> Softmax:
    """Returns the softmax as kernels take it: without a softcap, None makes the tanh vanish."""
    softcap = float(softmax.softcap) or None
    return aligned(Softmax(softmax.inv_temperature, softcap, softmax.keep))  # type: ignore[arg-type]


@triton.jit
def row_start(ptr, row, T, stride_b, stride_t, VECTOR: tl.constexpr):
    """Returns where a row begins: 64 bits, since N·V passes 2³¹."""
    return ptr + tl.multiple_of((row // T) * stride_b + (row % T) * stride_t, VECTOR)


@triton.jit
def counted_row(flag_ptr, row):
    """Returns whether a row counts; without flags (a mask or weights) every row does."""
    if flag_ptr is None:
        return row >= 0
    else:
        return tl.load(flag_ptr + row) != 0


@triton.jit
def whole_row(V, VECTOR: tl.constexpr):
    """Returns V as a number that the compiler knows to be a multiple of the vector width."""
    return V // VECTOR * VECTOR


@triton.jit
def row_scalar(ptr, row, counted, absent):
    """Returns the row's entry of a vector that may be missing; unread where it does not count."""
    if ptr is None:
        return absent
    else:
        return tl.load(ptr + row, mask=counted, other=absent)


@triton.jit
def open_row(row_ptr, token_ptr, softmax, row, counted, V, VECTOR: tl.constexpr):
    """Returns the Row; its logit is NaN, not foreign memory, for a token outside the vocabulary."""
    token = tl.load(token_ptr + row, mask=counted, other=-1)
    # Kept in 64 bits: compared in 32, the compiler takes 20 registers more on unaligned rows.
    token = tl.where((token >= 0) & (token < V), token, -1)
    inv_temperature = row_scalar(softmax.inv_temperature, row, counted, 1.0)
    logit = tl.load(row_ptr + tl.maximum(token, 0), mask=token >= 0, other=float("nan"))
    # Every warp reads the logit, and the one whose column it is overwrites it with the gradient:
    # Triton orders no load of one warp before a store of another.
    tl.debug_barrier()
    length = tl.where(counted, V // VECTOR, 0) * VECTOR
    return Row(counted, length, token, logit.to(tl.float32), inv_temperature)


@triton.jit
def load_block(row_ptr, columns, length):
    """Returns float32 logits of a block; −inf, of probability 0, beyond the length."""
    return tl.load(row_ptr + columns, mask=columns < length, other=float("-inf")).to(tl.float32)


@triton.jit
def temper(x, row, softcap):
    """Returns z of logits: softcap, then temperature; a banned token (−inf) stays banned."""
    if softcap is not None:
        x = tl.where(x == float("-inf"), x, softcap * tanh(tl.div_rn(x, softcap)))
    return x * row.inv_temperature


@triton.jit
def temper_slope(x, softcap):
    """Returns by what the softcap multiplies the gradient of a logit."""
    if softcap is not None:
        return tanh_slope(x * (1.0 / softcap))
    else:
        return tl.zeros_like(x) + 1.0


@triton.jit
def empty_sums():
    """Returns the sums of no logits at all."""
    zero = tl.zeros((), tl.float32)
    return Sums(zero - float("inf"), zero, zero, zero)


@triton.jit
def absorb_block(z, sums, SQUARES: tl.constexpr):
    """Returns the sums after a block more; after nothing but −inf still (−inf, 0, 0, 0)."""
    new_max = tl.maximum(sums.max, tl.max(z, 0))
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    drop = tl.where(sums.max == float("-inf"), 0.0, sums.max - shift)
    keep = tl.exp(drop)
    d = z - shift
    e = tl.exp(d)
    block_moment = tl.sum(e * tl.where(e != 0, d, 0.0), 0)  # not 0·(−inf)
    squares = sums.squares
    if SQUARES:
        squares = squares * keep * keep + tl.sum(e * e, 0)
    total = sums.total * keep + tl.sum(e, 0)
    moment = (sums.moment + drop * sums.total) * keep + block_moment
    return Sums(new_max, total, moment, squares)


@triton.jit
def absorb_row(
    row_ptr, end, row, softcap, sums,
    SQUARES: tl.constexpr, STAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns the sums after the blocks of the row that begin before end.

    With more than one stage the next blocks are on their way while one is summed.
    """
    for start in tl.range(0, end, BLOCK, num_stages=STAGES):
        x = load_block(row_ptr, start + tl.arange(0, BLOCK), row.length)
        sums = absorb_block(temper(x, row, softcap), sums, SQUARES)
    return sums


@triton.jit
def row_results(row, softcap, sums):
    """Returns the Results of a row's sums."""
    total = tl.where(row.counted, sums.total, 1.0)
    log_sum = tl.log(total)
    logprob = tl.where(row.counted, temper(row.logit, row, softcap) - sums.max - log_sum, 0.0)
    entropy = tl.where(row.counted, log_sum - sums.moment / total, 0.0)
    row_max = tl.where(row.counted, sums.max, 0.0)
    return Results(logprob, entropy, row_max, tl.where(row.counted, log_sum, 0.0))


@triton.jit
def gradient_slopes(row, softcap, results, d_logprob, d_entropy, d_lse):
    """Returns the Slopes of a row, given what the loss is in its logprob, entropy and log-sum-exp.

    In z it is  p_j·(d_lse − d_logprob − d_entropy·(log p_j + H)) + d_logprob·[j = token].
    At the token the first factor of d_logprob is 1 − p, which cancels: expm1 does not.
    """
    logprob, entropy = results.logprob, results.entropy
    p_unit = tl.exp(-results.log_sum) * row.inv_temperature
    constant = (d_lse - d_logprob - d_entropy * (entropy - results.log_sum)) * p_unit
    p = tl.exp(logprob)
    # p·log p is 0 for a token of probability 0.
    token_entropy = tl.where(p > 0, p * (logprob + entropy), 0.0)
    at_token = -d_logprob * expm1(logprob) + d_lse * p - d_entropy * token_entropy
    at_token = at_token * row.inv_temperature * temper_slope(row.logit, softcap)
    return Slopes(results.row_max, constant, -d_entropy * p_unit, at_token)


@triton.jit
def block_gradient(x, row, softcap, slopes):
    """Returns the gradient of logits that are not the token's; a logit of −inf gets 0."""
    d = temper(x, row, softcap) - slopes.row_max
    e = tl.exp(d)
    grad = e * (slopes.constant + slopes.linear * tl.where(e != 0, d, 0.0))  # not 0·(−inf)
    return grad * temper_slope(x, softcap)


@triton.jit
def store_gradient(grad_row, columns, grad, row, slopes, end):
    """Writes one block of the gradient: what is given, and at the token what the slopes say."""
    grad = tl.where(columns == row.token, slopes.at_token, grad).to(grad_row.dtype.element_ty)
    # Nothing reads it again soon: leave the cache to rows that wait for their second sweep.
    tl.store(grad_row + columns, grad, mask=columns < end, eviction_policy="evict_first")
