# SPDX-License-Identifier: Apache-2.0
"""The token objective on log-probabilities that are already there: loss, metrics and gradients."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_objective import Objective, Rows
from rlkern.backends.triton._levels import own_ratio, sequence_ratio, slope_through_ratio
from rlkern.backends.triton._rows import row_scalar
from rlkern.backends.triton._score import (
    coefficients,
    formulas,
    loss_and_metrics,
    new_statistics,
    own_log_ratio,
    score_rows,
    score_tokens,
    store_statistics,
)

_BLOCK = 256
_SEQUENCE_BLOCK = 512
_ROWS = [
    "logprob_ptr", "entropy_ptr", "advantage_ptr", "weight_ptr", "old_ptr", "ref_ptr",
    "correction_ptr", "stats_ptr", "grad_logprob_ptr", "grad_entropy_ptr",
]  # fmt: skip


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=_ROWS)
def token_objective_kernel(
    logprob_ptr, entropy_ptr, advantage_ptr, weight_ptr, old_ptr, ref_ptr, correction_ptr,
    stats_ptr, grad_logprob_ptr, grad_entropy_ptr, N: tl.int64, coef,
    GATE: tl.constexpr, KL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per block of tokens.

    - reads the scalars of its tokens; of a token of weight 0 nothing but the weight
    - writes two gradients per token, and the statistics of those that count
    - never materialises ratios or KL terms
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < N
    weight = tl.load(weight_ptr + row, mask=inside, other=0.0)
    counted = weight != 0
    logprob = tl.load(logprob_ptr + row, mask=counted, other=0.0)
    entropy = tl.load(entropy_ptr + row, mask=counted, other=0.0)
    d_logprob, d_entropy = score_rows(
        row, counted, N, weight, logprob, entropy, advantage_ptr, old_ptr, ref_ptr, correction_ptr,
        stats_ptr, coef, GATE, KL,
    )  # fmt: skip
    tl.store(grad_logprob_ptr + row, d_logprob, mask=inside)
    tl.store(grad_entropy_ptr + row, d_entropy, mask=inside)


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
def sequence_block(
    start, end, logprob_ptr, advantage_ptr, weight_ptr, old_ptr, coef,
    LEVEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns (row, weight, counted, logprob, advantage, log_ratio, what own_ratio makes of it)."""
    row = tl.cast(start, tl.int64) + tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + row, mask=row < end, other=0.0)
    counted = weight != 0
    logprob = tl.load(logprob_ptr + row, mask=counted, other=0.0)
    advantage = tl.load(advantage_ptr + row, mask=counted, other=0.0)
    log_ratio = own_log_ratio(logprob, old_ptr, row, counted)
    own, low, high = own_ratio(log_ratio, advantage, coef[0], coef[1], LEVEL)
    return row, weight, counted, logprob, advantage, log_ratio, own, low, high


@triton.jit(do_not_specialize=["N", "T"], do_not_specialize_on_alignment=[*_ROWS, "cu_ptr"])
def sequence_objective_kernel(
    logprob_ptr, entropy_ptr, advantage_ptr, weight_ptr, old_ptr, ref_ptr, correction_ptr,
    stats_ptr, grad_logprob_ptr, grad_entropy_ptr, cu_ptr, N: tl.int64, T: tl.int64, coef,
    GATE: tl.constexpr, KL: tl.constexpr, LEVEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per sequence: its ratio, its loss and the slope in the ratio, its gradients.

    - reads the scalars of its tokens three times; of a token of weight 0 nothing but the weight
    - writes two gradients per token, and the statistics of those that count
    - never materialises ratios, KL terms or per-token losses
    """
    begin, end = sequence_bounds(cu_ptr, tl.program_id(0).to(tl.int64), N, T)
    total = tl.zeros((BLOCK,), tl.float32)
    tokens = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        _, _, counted, _, _, _, own, _, _ = sequence_block(
            start, end, logprob_ptr, advantage_ptr, weight_ptr, old_ptr, coef, LEVEL, BLOCK
        )
        total += tl.where(counted, own, 0.0)
        tokens += counted.to(tl.float32)
    tokens = tl.sum(tokens, 0)
    shared = sequence_ratio(tl.sum(total, 0), tokens, LEVEL)
    slope = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        row, weight, counted, logprob, advantage, log_ratio, own, own_low, own_high = (
            sequence_block(
                start, end, logprob_ptr, advantage_ptr, weight_ptr, old_ptr, coef, LEVEL, BLOCK
            )
        )
        entropy = tl.load(entropy_ptr + row, mask=counted, other=0.0)
        ref = row_scalar(ref_ptr, row, counted, 0.0)
        correction = tl.zeros_like(logprob) + row_scalar(correction_ptr, row, counted, 1.0)
        gate_ratio = tl.zeros_like(logprob) + shared
        loss, _, d_ratio, _, kl, low, high = score_tokens(
            logprob, entropy, advantage, weight, correction, ref, log_ratio, gate_ratio, coef,
            GATE, KL, ref_ptr is not None,
        )  # fmt: skip
        store_statistics(
            stats_ptr, row, counted, N, loss, logprob, entropy, kl, ref, log_ratio, gate_ratio,
            low | own_low, high | own_high, correction, ref_ptr is not None,
        )  # fmt: skip
        slope += tl.where(counted, d_ratio, 0.0)
    slope = tl.sum(slope, 0)
    for start in range(begin, end, BLOCK):
        row, weight, counted, logprob, advantage, log_ratio, own, own_low, own_high = (
            sequence_block(
                start, end, logprob_ptr, advantage_ptr, weight_ptr, old_ptr, coef, LEVEL, BLOCK
            )
        )
        ref = row_scalar(ref_ptr, row, counted, 0.0)
        correction = tl.zeros_like(logprob) + row_scalar(correction_ptr, row, counted, 1.0)
        gate_ratio = tl.zeros_like(logprob) + shared
        _, d_logprob, d_ratio, d_entropy, _, _, _ = score_tokens(
            logprob, logprob, advantage, weight, correction, ref, log_ratio, gate_ratio, coef,
            GATE, KL, ref_ptr is not None,
        )  # fmt: skip
        d_logprob += slope_through_ratio(d_ratio, slope, own_low | own_high, tokens, LEVEL)
        tl.store(grad_logprob_ptr + row, tl.where(counted, d_logprob, 0.0), mask=row < end)
        tl.store(grad_entropy_ptr + row, tl.where(counted, d_entropy, 0.0), mask=row < end)


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
    N = rows.weight.numel()
    arguments = (logprob, entropy, *rows, statistics, *grads)
    with torch.cuda.device_of(logprob):
        if N and objective.level == "token":
            token_objective_kernel[(triton.cdiv(N, _BLOCK),)](
                *arguments, N, coefficients(objective), **formulas(objective), BLOCK=_BLOCK,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        elif N:
            sequences = logprob.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
            sequence_objective_kernel[(sequences,)](
                *arguments, cu_seqlens, N, logprob.shape[1], coefficients(objective),
                **formulas(objective), LEVEL=objective.level, BLOCK=_SEQUENCE_BLOCK,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        loss, metrics = loss_and_metrics(statistics, rows.weight)
    return loss, metrics, *grads
