# SPDX-License-Identifier: Apache-2.0
"""The token objective on log-probabilities that are already there: loss, metrics and gradients."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_objective import Objective, Rows
from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._levels import own_ratio, sequence_ratio, slope_through_ratio
from rlkern.backends.triton._score import (
    formulas,
    load_tokens,
    loss_and_metrics,
    new_statistics,
    score_rows,
    score_tokens,
    store_statistics,
)

# Tokens of a program of 4 warps: 2 per thread, so that short batches fill a GPU, too; 4 of a
# sequence, whose program walks on and has to sum over its threads.
_BLOCK = 256
_SEQUENCE_BLOCK = 256


class Given(NamedTuple):
    """What is differentiated, and where sequences begin (None: in rows of T tokens)."""

    logprob: Tensor
    entropy: Tensor
    cu_seqlens: Tensor | None


class Out(NamedTuple):
    """What is written."""

    statistics: Tensor
    grad_logprob: Tensor
    grad_entropy: Tensor


class SequenceBlock(NamedTuple):
    """A block of a sequence's tokens: what its sequence takes in of each, and which clips hold."""

    i: Any
    tokens: Any
    own_ratio: Any
    clip_low: Any
    clip_high: Any


@kernel
def token_objective_kernel(given, rows, objective, out, N: tl.int64, BLOCK: tl.constexpr):
    """One program per block of tokens.

    - reads the scalars of its tokens; of a token of weight 0 nothing but the weight
    - writes two gradients per token, and the statistics of those that count
    - never materialises ratios or KL terms
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(rows.weight + i, mask=i < N, other=0.0)
    logprob = tl.load(given.logprob + i, mask=weight != 0, other=0.0)
    entropy = tl.load(given.entropy + i, mask=weight != 0, other=0.0)
    d_logprob, d_entropy = score_rows(
        i, N, weight, logprob, entropy, rows, objective, out.statistics
    )
    tl.store(out.grad_logprob + i, d_logprob, mask=i < N)
    tl.store(out.grad_entropy + i, d_entropy, mask=i < N)


@triton.jit
def sequence_bounds(cu_ptr, sequence, N, T):
    """Returns where a sequence begins and ends, within the rows whatever cu_seqlens says."""
    if cu_ptr is None:
        return sequence * T, (sequence + 1) * T
    else:
        begin = tl.load(cu_ptr + sequence)
        end = tl.load(cu_ptr + sequence + 1)
        return tl.maximum(begin, 0), tl.minimum(end, N)


@triton.jit
def sequence_block(start, end, given, rows, objective, BLOCK: tl.constexpr):
    """Returns the SequenceBlock of the tokens from start."""
    i = tl.cast(start, tl.int64) + tl.arange(0, BLOCK)
    weight = tl.load(rows.weight + i, mask=i < end, other=0.0)
    logprob = tl.load(given.logprob + i, mask=weight != 0, other=0.0)
    entropy = tl.load(given.entropy + i, mask=weight != 0, other=0.0)
    tokens = load_tokens(i, weight, logprob, entropy, rows)
    own, clip_low, clip_high = own_ratio(
        tokens.log_ratio, tokens.advantage, *objective.gate_coef[:2], objective.level
    )
    return SequenceBlock(i, tokens, own, clip_low, clip_high)


@kernel
def sequence_objective_kernel(
    given, rows, objective, out, N: tl.int64, T: tl.int64, BLOCK: tl.constexpr
):
    """One program per sequence: its ratio, its loss and the slope in the ratio, its gradients.

    - reads the scalars of its tokens three times; of a token of weight 0 nothing but the weight
    - writes two gradients per token, and the statistics of those that count
    - never materialises ratios, KL terms or per-token losses
    """
    HAS_REF: tl.constexpr = rows.ref_logprob is not None
    begin, end = sequence_bounds(given.cu_seqlens, tl.program_id(0).to(tl.int64), N, T)
    total = tl.zeros((BLOCK,), tl.float32)
    number = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        block = sequence_block(start, end, given, rows, objective, BLOCK)
        counted = block.tokens.weight != 0
        total += tl.where(counted, block.own_ratio, 0.0)
        number += counted.to(tl.float32)
    number = tl.sum(number, 0)
    shared = sequence_ratio(tl.sum(total, 0), number, objective.level)
    gate_ratio = tl.zeros((BLOCK,), tl.float32) + shared
    slope = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        block = sequence_block(start, end, given, rows, objective, BLOCK)
        score = score_tokens(block.tokens, gate_ratio, objective, HAS_REF)
        clips = score.clip_low | block.clip_low, score.clip_high | block.clip_high
        store_statistics(out.statistics, block.i, N, block.tokens, score, *clips, HAS_REF)
        slope += tl.where(block.tokens.weight != 0, score.d_ratio, 0.0)
    slope = tl.sum(slope, 0)
    for start in range(begin, end, BLOCK):
        block = sequence_block(start, end, given, rows, objective, BLOCK)
        counted = block.tokens.weight != 0
        score = score_tokens(block.tokens, gate_ratio, objective, HAS_REF)
        held = block.clip_low | block.clip_high
        d_logprob = score.d_logprob + slope_through_ratio(
            score.d_ratio, slope, held, number, objective.level
        )
        tl.store(out.grad_logprob + block.i, tl.where(counted, d_logprob, 0.0), mask=block.i < end)
        d_entropy = tl.where(counted, score.d_entropy, 0.0)
        tl.store(out.grad_entropy + block.i, d_entropy, mask=block.i < end)


def token_objective(
    logprob: Tensor,
    entropy: Tensor,
    rows: Rows,
    cu_seqlens: Tensor | None,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_logprob, grad_entropy) of loss = Σ weight·ℓ.

    A sequence is a row of (B, T), or what cu_seqlens says of the flattened rows, all of which it
    must cover.
    """
    grads = torch.empty_like(logprob), torch.empty_like(entropy)
    statistics = new_statistics(rows.weight)
    N, by_token = rows.weight.numel(), objective.level == "token"
    given = Given(logprob, entropy, None if by_token else cu_seqlens)
    groups = (aligned(given), aligned(rows), formulas(objective), Out(statistics, *grads))
    options = {"num_warps": 4, "enable_fp_fusion": True}
    with torch.cuda.device_of(logprob):
        if N and by_token:
            token_objective_kernel[(triton.cdiv(N, _BLOCK),)](*groups, N, BLOCK=_BLOCK, **options)
        elif N:
            sequences = logprob.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
            sequence_objective_kernel[(sequences,)](
                *groups, N, logprob.shape[1], BLOCK=_SEQUENCE_BLOCK, **options
            )
        loss, metrics = loss_and_metrics(statistics, rows.weight)
    return loss, metrics, *grads
