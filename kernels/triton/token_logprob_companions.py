# SPDX-License-Identifier: Apache-2.0
"""Log-probability of given tokens with the companions of their rows, from one read of each row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_logprob import Companions, Scored, Softmax
from rlkern.backends.triton._launch import kernel
from rlkern.backends.triton._rows import (
    absorb_block,
    counted_row,
    empty_sums,
    load_block,
    open_row,
    row_start,
    temper,
)
from rlkern.backends.triton.token_logprob import forward_launch, store_scored, token_logprob


@triton.jit
def store_companions(companions, i, row, V, total, beaten):
    """Writes the companions of row i; its total is Σ z."""
    tl.store(companions.mean_logit + i, total / V)
    tl.store(companions.is_argmax + i, row.counted & (beaten == 0))


@triton.jit
def beats_token(x, columns, row):
    """Returns which logits keep the token from being the first maximum; a NaN does."""
    return ((x <= row.logit) == 0) | ((x == row.logit) & (columns < row.token))


@kernel
def companion_forward(
    logits_ptr, tokens, softmax, scored, companions, T: tl.int64, V: tl.int32,
    stride_b: tl.int64, stride_t: tl.int64, LAUNCH: tl.constexpr,
):  # fmt: skip
    """One program per row; without scored (kept sets have their own kernel) companions alone.

    - reads the row once, and once more one element of it: the token's
    - writes a float32 scalar and a bool, and what token_logprob_forward writes
    - never materialises probabilities; a row that does not count is not read
    """
    BLOCK: tl.constexpr = LAUNCH.block
    softcap = softmax.softcap
    i = tl.program_id(0).to(tl.int64)
    counted = counted_row(tokens.mask, i)
    row_ptr = row_start(logits_ptr, i, T, stride_b, stride_t, LAUNCH.vector)
    row = open_row(row_ptr, tokens.token, softmax, i, counted, V, LAUNCH.vector)
    sums = empty_sums()
    total = tl.zeros((), tl.float32)
    beaten = tl.zeros((), tl.int32)
    for start in tl.range(0, row.length, BLOCK, num_stages=1):
        columns = start + tl.arange(0, BLOCK)
        x = load_block(row_ptr, columns, row.length)
        z = temper(x, row, softcap)
        total += tl.sum(tl.where(columns < row.length, z, 0.0), 0)
        beaten = tl.maximum(beaten, tl.max(beats_token(x, columns, row).to(tl.int32), 0))
        if scored is not None:
            sums = absorb_block(z, sums, True)
    store_companions(companions, i, row, V, total, beaten)
    if scored is not None:
        store_scored(scored, i, row, softcap, sums)


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
