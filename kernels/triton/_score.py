# SPDX-License-Identifier: Apache-2.0
"""Scores tokens by the objective; sums the scores of all rows in a fixed order."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_objective import SUMMED_METRICS, Objective
from rlkern.backends.triton._gates import GATES
from rlkern.backends.triton._kl import KL_ESTIMATORS, k1, k2, k3
from rlkern.backends.triton._rows import row_scalar

# Rows of the statistics buffer (COLUMNS, N): the weighted loss, then SUMMED_METRICS[1:] of the
# reference. The rest of METRICS (count, ratio_min, ratio_max) comes from the weights and the ratio
# while these are summed. Tokens that do not count have no statistics: they are not read.
COLUMNS = len(SUMMED_METRICS)
_RATIO = SUMMED_METRICS.index("ratio")
_BLOCK = 1024


@triton.jit
def own_log_ratio(logprob, old_ptr, row, counted):
    """Returns log π − log π_old of tokens; 0 on policy."""
    if old_ptr is None:
        return logprob - logprob
    else:
        return logprob - tl.load(old_ptr + row, mask=counted, other=0.0)


@triton.jit
def score_tokens(
    logprob, entropy, advantage, weight, correction, ref, log_ratio, gate_ratio, coef,
    GATE: tl.constexpr, KL: tl.constexpr, HAS_REF: tl.constexpr,
):  # fmt: skip
    """Returns (loss, ∂/∂log π, ∂/∂gate_ratio, ∂/∂H) of tokens, weighted, and (KL, low, high).

    gate_ratio is the log ratio that the level makes of log_ratio, the token's own.
    """
    c0, c1, c2, c3, kl_coef, entropy_coef = coef
    loss, slope, ratio_slope, low, high = GATE(logprob, gate_ratio, advantage, c0, c1, c2, c3)
    loss = correction * loss - entropy_coef * entropy
    slope = correction * slope
    kl = tl.zeros_like(logprob)
    if HAS_REF:
        kl, kl_slope = KL(logprob - ref, log_ratio)
        loss += kl_coef * kl
        slope += kl_coef * kl_slope
    d_ratio = weight * correction * ratio_slope
    return weight * loss, weight * slope, d_ratio, -weight * entropy_coef, kl, low, high


@triton.jit
def store_statistics(
    stats_ptr, row, counted, N, loss, logprob, entropy, kl, ref, log_ratio, gate_ratio, low, high,
    correction, HAS_REF: tl.constexpr,
):  # fmt: skip
    """Writes the statistics of counted tokens, in the order of the reference's METRICS."""
    at = stats_ptr + row
    tl.store(at, loss, mask=counted)
    tl.store(at + N, logprob, mask=counted)
    tl.store(at + 2 * N, entropy, mask=counted)
    tl.store(at + 3 * N, kl, mask=counted)
    first = tl.zeros_like(logprob)
    second = first
    third = first
    if HAS_REF:
        first, _ = k1(logprob - ref, log_ratio)
        second, _ = k2(logprob - ref, log_ratio)
        third, _ = k3(logprob - ref, log_ratio)
    tl.store(at + 4 * N, first, mask=counted)
    tl.store(at + 5 * N, second, mask=counted)
    tl.store(at + 6 * N, third, mask=counted)
    old_kl, _ = k3(log_ratio, log_ratio)
    tl.store(at + 7 * N, old_kl, mask=counted)
    tl.store(at + 8 * N, tl.exp(gate_ratio), mask=counted)
    tl.store(at + 9 * N, low.to(tl.float32), mask=counted)
    tl.store(at + 10 * N, high.to(tl.float32), mask=counted)
    tl.store(at + 11 * N, correction, mask=counted)


@triton.jit
def score_rows(
    row, counted, N, weight, logprob, entropy, advantage_ptr, old_ptr, ref_ptr, correction_ptr,
    stats_ptr, coef, GATE: tl.constexpr, KL: tl.constexpr,
):  # fmt: skip
    """Returns the weighted (∂loss/∂log π, ∂loss/∂H) of tokens by their own ratios.

    Zeros for tokens that do not count; writes the statistics of the others.
    """
    advantage = tl.load(advantage_ptr + row, mask=counted, other=0.0)
    ref = row_scalar(ref_ptr, row, counted, 0.0)
    correction = tl.zeros_like(logprob) + row_scalar(correction_ptr, row, counted, 1.0)
    log_ratio = own_log_ratio(logprob, old_ptr, row, counted)
    loss, d_logprob, d_ratio, d_entropy, kl, low, high = score_tokens(
        logprob, entropy, advantage, weight, correction, ref, log_ratio, log_ratio, coef,
        GATE, KL, ref_ptr is not None,
    )  # fmt: skip
    store_statistics(
        stats_ptr, row, counted, N, loss, logprob, entropy, kl, ref, log_ratio, log_ratio,
        low, high, correction, ref_ptr is not None,
    )  # fmt: skip
    return tl.where(counted, d_logprob + d_ratio, 0.0), tl.where(counted, d_entropy, 0.0)


@triton.jit(
    do_not_specialize=["N"],
    do_not_specialize_on_alignment=["stats_ptr", "weight_ptr", "loss_ptr", "metrics_ptr"],
)
def sum_statistics(
    stats_ptr, weight_ptr, loss_ptr, metrics_ptr, N: tl.int64,
    COLUMNS: tl.constexpr, RATIO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per column of statistics; a fixed order and no atomics: two runs, the same bits.

    - reads its column where tokens count, and the weights
    - writes one sum: the loss or a metric; two programs also the count and the ratio's bounds
    - never materialises anything
    """
    column = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    count = tl.zeros((BLOCK,), tl.float32)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, N, BLOCK):
        row = tl.cast(start, tl.int64) + tl.arange(0, BLOCK)
        counted = tl.load(weight_ptr + row, mask=row < N, other=0.0) != 0
        x = tl.load(stats_ptr + column.to(tl.int64) * N + row, mask=counted, other=0.0)
        total += x
        count += counted.to(tl.float32)
        low = tl.where(counted, tl.minimum(low, x), low)
        high = tl.where(counted, tl.maximum(high, x), high)
    tl.store(loss_ptr, tl.sum(total, 0), mask=column == 0)
    tl.store(metrics_ptr + column, tl.sum(total, 0), mask=column > 0)
    tl.store(metrics_ptr, tl.sum(count, 0), mask=column == 0)
    tl.store(metrics_ptr + COLUMNS, tl.min(low, 0), mask=column == RATIO)
    tl.store(metrics_ptr + COLUMNS + 1, tl.max(high, 0), mask=column == RATIO)


def formulas(objective: Objective) -> dict[str, Any]:
    """Returns the compile-time constants of an objective."""
    return {"GATE": GATES[objective.gate], "KL": KL_ESTIMATORS[objective.kl]}


def coefficients(objective: Objective) -> tuple[float, ...]:
    """Returns an objective's numbers; an int among them would compile a variant of its own."""
    return tuple(float(x) for x in objective.numbers)


def new_statistics(rows: Tensor) -> Tensor:
    """Returns the uninitialised statistics buffer of these rows."""
    return torch.empty((COLUMNS, rows.numel()), dtype=torch.float32, device=rows.device)


def loss_and_metrics(statistics: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics): the sum of the weighted losses, and the reference's METRICS."""
    loss = torch.empty((), dtype=torch.float32, device=weight.device)
    metrics = torch.empty((COLUMNS + 2,), dtype=torch.float32, device=weight.device)
    sum_statistics[(COLUMNS,)](
        statistics, weight, loss, metrics, weight.numel(), COLUMNS=COLUMNS, RATIO=_RATIO,
        BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return loss, metrics
