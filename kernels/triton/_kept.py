# SPDX-License-Identifier: Apache-2.0
"""Rows of which only a kept set could be sampled: K ids are read instead of V columns.

A row's ids are unique; −1 is an unused place, and a row of nothing but −1 keeps the whole
vocabulary. Ids below −1 are kept in another rank's slice. The token always belongs to the set,
listed or not, so it is taken apart from the list.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.triton._rows import absorb_block, block_gradient, temper

_BLOCK = 1024


def kept_arguments(softmax: Softmax, block: int) -> tuple[Tensor | None, int, int]:
    """Returns (ids, K, ids per block) of a launch whose blocks have so many columns."""
    ids = softmax.keep
    return ids, 0 if ids is None else ids.shape[2], min(block, _BLOCK)


def scratch_for(softmax: Softmax) -> Tensor | None:
    """Returns room for the kept logits: in place, zeros overwrite them before their gradients."""
    if softmax.keep is None:
        return None
    return torch.empty(softmax.keep.shape, dtype=torch.float32, device=softmax.keep.device)


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
def kept_block(keep_row, at, length, token, V):
    """Returns (ids, which of them are columns of this row other than the token)."""
    ids = tl.load(keep_row + at, mask=at < length, other=-1)
    return ids, (ids >= 0) & (ids < V) & (ids != token)


@triton.jit
def kept_sums(
    row_ptr, keep_row, length, token, own, V, scale, softcap, scratch_row,
    CAPPED: tl.constexpr, SQUARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns (m, s, t, q) of the token and the kept ids, whose logits it leaves in the scratch.

    Those of no logits at all for length 0.
    """
    zero = tl.zeros((), tl.float32)
    known = (token >= 0) & (length > 0)
    m = tl.where(known, own, float("-inf"))
    # 1 for the token alone, 0 if its logit is −inf, NaN if it is NaN.
    s = tl.where(m == float("-inf"), 0.0, 1.0 + (m - m))
    t = zero
    q = s
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids, valid = kept_block(keep_row, at, length, token, V)
        x = tl.load(row_ptr + ids, mask=valid, other=float("-inf")).to(tl.float32)
        if scratch_row is not None:
            tl.store(scratch_row + at, x, mask=at < length)
        m, s, t, q = absorb_block(temper(x, scale, softcap, CAPPED), m, s, t, q, SQUARES)
    return m, s, t, q


@triton.jit
def store_kept_gradient(
    grad_row, keep_row, length, token, V, scratch_row, m, a, b, scale, softcap,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the kept ids over the zeros of their row; the token's is there."""
    # Other threads wrote those zeros.
    tl.debug_barrier()
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids, valid = kept_block(keep_row, at, length, token, V)
        x = tl.load(scratch_row + at, mask=at < length, other=float("-inf"))
        grad = block_gradient(x, m, a, b, scale, softcap, CAPPED)
        tl.store(grad_row + ids, grad.to(grad_row.dtype.element_ty), mask=valid)
