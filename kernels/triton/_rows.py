# SPDX-License-Identifier: Apache-2.0
"""What every kernel over the vocabulary shares: launch shapes, row addressing, and the two sweeps.

A row of z = softcap·tanh(logit / softcap) / temperature is known by its maximum m and three sums in
coordinates shifted by it, so that a common offset of the logits costs no digits:
    s = Σ exp(z − m)    t = Σ exp(z − m)·(z − m)    q = Σ exp(z − m)²
    log_sum = log s     entropy = log s − t/s       sum_pi_squared = q/s²
"""

import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.triton._math import expm1, tanh, tanh_slope

# (largest V, columns per block, warps). A row that fits one block is read once and kept on chip.
# From register counts of compiled kernels, not from measurements: 8 to 16 columns per thread give
# 16-byte accesses and no spills. Rows of up to 65 536 columns are short enough for an L2 cache to
# hold two or more per multiprocessor, longer ones are not: those get the larger program.
SHAPES = ((128, 128, 1), (1024, 1024, 4), (65536, 4096, 8), (1 << 31, 8192, 16))


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


@triton.jit
def row_offset(row, T, stride_b, stride_t, VECTOR: tl.constexpr):
    """Returns where a row begins, in elements: 64 bits, since N·V passes 2³¹."""
    return tl.multiple_of((row // T) * stride_b + (row % T) * stride_t, VECTOR)


@triton.jit
def counted_row(flag_ptr, row):
    """Returns whether a row counts; without flags (a mask or weights) every row does."""
    if flag_ptr is None:
        return row >= 0
    else:
        return tl.load(flag_ptr + row) != 0


@triton.jit
def row_length(counted, V, VECTOR: tl.constexpr):
    """Returns how many columns to read: none of a row that does not count."""
    return tl.where(counted, V // VECTOR, 0) * VECTOR


@triton.jit
def row_scalar(ptr, row, counted, absent):
    """Returns the row's entry of a vector that may be missing; unread where it does not count."""
    if ptr is None:
        return absent
    else:
        return tl.load(ptr + row, mask=counted, other=absent)


@triton.jit
def load_token(token_ptr, row, counted, V):
    """Returns the row's token, −1 if it is no column of the row or the row does not count."""
    token = tl.load(token_ptr + row, mask=counted, other=-1)
    # Kept in 64 bits: compared in 32, the compiler takes 20 registers more on unaligned rows.
    return tl.where((token >= 0) & (token < V), token, -1)


@triton.jit
def token_logit(row_ptr, token):
    """Returns the token's logit; NaN, not foreign memory, for a token outside the vocabulary."""
    x = tl.load(row_ptr + tl.maximum(token, 0), mask=token >= 0, other=float("nan"))
    # Another warp must not overwrite the logit in place before every warp has it.
    tl.debug_barrier()
    return x.to(tl.float32)


@triton.jit
def load_block(row_ptr, columns, length):
    """Returns float32 logits of a block; −inf, of probability 0, beyond the length."""
    return tl.load(row_ptr + columns, mask=columns < length, other=float("-inf")).to(tl.float32)


@triton.jit
def temper(x, scale, softcap, CAPPED: tl.constexpr):
    """Returns z of logits: softcap, then temperature; a banned token (−inf) stays banned."""
    if CAPPED:
        x = tl.where(x == float("-inf"), x, softcap * tanh(tl.div_rn(x, softcap)))
    return x * scale


@triton.jit
def temper_slope(x, softcap, CAPPED: tl.constexpr):
    """Returns by what the softcap multiplies the gradient of a logit."""
    if CAPPED:
        return tanh_slope(x * (1.0 / softcap))
    else:
        return tl.zeros_like(x) + 1.0


@triton.jit
def empty_sums():
    """Returns (m, s, t, q) of no logits at all."""
    zero = tl.zeros((), tl.float32)
    return zero - float("inf"), zero, zero, zero


@triton.jit
def absorb_block(z, m, s, t, q, SQUARES: tl.constexpr):
    """Returns (m, s, t, q) after a block more; after nothing but −inf still (−inf, 0, 0, 0)."""
    new_m = tl.maximum(m, tl.max(z, 0))
    shift = tl.where(new_m == float("-inf"), 0.0, new_m)
    drop = tl.where(m == float("-inf"), 0.0, m - shift)
    keep = tl.exp(drop)
    d = z - shift
    e = tl.exp(d)
    block_t = tl.sum(e * tl.where(e != 0, d, 0.0), 0)  # not 0·(−inf)
    if SQUARES:
        q = q * keep * keep + tl.sum(e * e, 0)
    return new_m, s * keep + tl.sum(e, 0), (t + drop * s) * keep + block_t, q


@triton.jit
def absorb_row(
    row_ptr, end, length, scale, softcap, m, s, t, q,
    CAPPED: tl.constexpr, SQUARES: tl.constexpr, STAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns (m, s, t, q) after the blocks that begin before end, columns up to length read.

    With more than one stage the next blocks are on their way while one is summed.
    """
    for start in tl.range(0, end, BLOCK, num_stages=STAGES):
        x = load_block(row_ptr, start + tl.arange(0, BLOCK), length)
        m, s, t, q = absorb_block(temper(x, scale, softcap, CAPPED), m, s, t, q, SQUARES)
    return m, s, t, q


@triton.jit
def row_results(own, m, s, t, counted):
    """Returns (logprob, entropy, m, log_sum) from the sums, 0 for a row that does not count."""
    s = tl.where(counted, s, 1.0)
    log_sum = tl.log(s)
    logprob = tl.where(counted, own - m - log_sum, 0.0)
    entropy = tl.where(counted, log_sum - t / s, 0.0)
    return logprob, entropy, tl.where(counted, m, 0.0), tl.where(counted, log_sum, 0.0)


@triton.jit
def gradient_scalars(logprob, entropy, log_sum, scale, own_slope, d_logprob, d_entropy, d_lse):
    """Returns (a, b, own): dz_j = exp(z_j − m)·(a + b·(z_j − m)), and the token's element.

    dz_j = (p_j·(d_lse − d_logprob − d_entropy·(log p_j + H)) + d_logprob·[j = token]) · scale.
    At the token the first factor of d_logprob is 1 − p, which cancels: expm1 does not.
    """
    p_unit = tl.exp(-log_sum) * scale
    a = (d_lse - d_logprob - d_entropy * (entropy - log_sum)) * p_unit
    b = -d_entropy * p_unit
    p = tl.exp(logprob)
    # p·log p is 0 for a token of probability 0.
    own_entropy = tl.where(p > 0, p * (logprob + entropy), 0.0)
    own = (-d_logprob * expm1(logprob) + d_lse * p - d_entropy * own_entropy) * scale
    return a, b, own * own_slope


@triton.jit
def block_gradient(x, m, a, b, scale, softcap, CAPPED: tl.constexpr):
    """Returns the gradient of logits that are not the token's; a logit of −inf gets 0."""
    d = temper(x, scale, softcap, CAPPED) - m
    e = tl.exp(d)
    grad = e * (a + b * tl.where(e != 0, d, 0.0))  # not 0·(−inf)
    return grad * temper_slope(x, softcap, CAPPED)


@triton.jit
def store_gradient(
    grad_ptr, columns, x, m, token, V, a, b, own, scale, softcap,
    CAPPED: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Writes one block of the gradient."""
    grad = block_gradient(x, m, a, b, scale, softcap, CAPPED)
    grad = tl.where(columns == token, own, grad)
    inside = columns < V // VECTOR * VECTOR
    grad = grad.to(grad_ptr.dtype.element_ty)
    # Nothing reads it again soon: leave the cache to rows that wait for their second sweep.
    tl.store(grad_ptr + columns, grad, mask=inside, eviction_policy="evict_first")
