# SPDX-License-Identifier: Apache-2.0
"""Scores tokens by the objective; sums the scores of all rows in a fixed order."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.kl import OF_LEVEL, STRAIGHT_THROUGH
from rlkern.backends.eager.token_objective import SUMMED_METRICS, Objective
from rlkern.backends.triton._gates import GATES
from rlkern.backends.triton._kl import KL_ESTIMATORS, Kl, k1, k2, k3, kl_term
from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._rows import row_scalar

# Rows of the statistics buffer (COLUMNS, N): the weighted loss, then SUMMED_METRICS[1:] of the
# reference. The rest of METRICS (count, ratio_min, ratio_max) comes from the weights and the ratio
# while these are summed. Tokens that do not count have no statistics: they are not read.
COLUMNS = len(SUMMED_METRICS)
_RATIO = SUMMED_METRICS.index("ratio")
# 8 rows per thread: two 16-byte loads of the statistics and two of the weights are in flight.
_BLOCK = 1024


class Tokens(NamedTuple):
    """What is known of tokens; log_ratio is log π − log π_old of each."""

    logprob: Any
    entropy: Any
    advantage: Any
    weight: Any
    log_ratio: Any
    ref_logprob: Any
    correction: Any
    penalty: Any
    entropy_weight: Any
    nll_weight: Any


class Score(NamedTuple):
    """The weighted loss of tokens with its derivatives; the KL, log ratio and clips it saw."""

    loss: Any
    d_logprob: Any
    d_ratio: Any
    d_entropy: Any
    kl: Any
    log_ratio: Any
    clip_low: Any
    clip_high: Any


@triton.jit
def own_log_ratio(logprob, old_ptr, row, counted):
    """Returns log π − log π_old of tokens; 0 on policy, and where log π_old is NaN."""
    if old_ptr is None:
        return logprob - logprob
    else:
        old = tl.load(old_ptr + row, mask=counted, other=0.0)
        return logprob - tl.where(old != old, logprob, old)


@triton.jit
def load_tokens(i, weight, logprob, entropy, rows):
    """Returns the Tokens of these rows; of a token of weight 0 nothing is read."""
    counted = weight != 0
    return Tokens(
        logprob=logprob,
        entropy=entropy,
        advantage=tl.load(rows.advantage + i, mask=counted, other=0.0),
        weight=weight,
        log_ratio=own_log_ratio(logprob, rows.old_logprob, i, counted),
        ref_logprob=tl.zeros_like(logprob) + row_scalar(rows.ref_logprob, i, counted, 0.0),
        correction=tl.zeros_like(logprob) + row_scalar(rows.correction, i, counted, 1.0),
        penalty=tl.zeros_like(logprob) + row_scalar(rows.penalty, i, counted, 0.0),
        entropy_weight=row_scalar(rows.entropy_weight, i, counted, weight),
        nll_weight=tl.zeros_like(logprob) + row_scalar(rows.nll_weight, i, counted, 0.0),
    )


@triton.jit
def scaled_term(factor, x):
    """Returns factor·x, and 0 for a factor of 0 also where x is infinite or NaN."""
    return tl.where(factor == 0, 0.0, factor * x)


@triton.jit
def clamped(log_ratio, objective):
    """Returns a log ratio as its gate sees it: within its bounds. A NaN is on neither side."""
    seen = log_ratio
    if objective.log_ratio_min is not None:
        seen = tl.where(seen < objective.log_ratio_min, objective.log_ratio_min, seen)
    if objective.log_ratio_max is not None:
        seen = tl.where(seen > objective.log_ratio_max, objective.log_ratio_max, seen)
    return seen


@triton.jit
def penalized(tokens):
    """Returns penalty·|log r| of tokens and its derivative: 0 without one, however far they are."""
    far = tl.abs(tokens.log_ratio)
    sign = tl.where(tokens.log_ratio > 0, 1.0, tl.where(tokens.log_ratio < 0, -1.0, 0.0))
    return scaled_term(tokens.penalty, far), tokens.penalty * sign


@triton.jit
def score_tokens(tokens, gate_ratio, objective, HAS_REF: tl.constexpr):
    """Returns the Score of tokens; gate_ratio is what the level makes of their log ratios.

    d_ratio is the derivative in it.
    """
    weight, correction = tokens.weight, tokens.correction
    seen = clamped(gate_ratio, objective)
    loss, slope, ratio_slope, clip_low, clip_high = objective.gate(
        tokens.logprob, seen, tokens.advantage, *objective.gate_coef
    )
    loss = scaled_term(correction, loss)
    slope = scaled_term(correction, slope)
    ratio_slope = scaled_term(correction, ratio_slope)
    kl = tl.zeros_like(tokens.logprob)
    if HAS_REF:
        distance = tokens.logprob - tokens.ref_logprob
        kl, kl_slope, kl_ratio_slope = kl_term(
            objective.kl, distance, tokens.log_ratio, seen, objective.kl_max
        )
        loss += scaled_term(objective.kl_coef, kl)
        slope += scaled_term(objective.kl_coef, kl_slope)
        ratio_slope += scaled_term(objective.kl_coef, kl_ratio_slope)
    penalty, penalty_slope = penalized(tokens)
    loss = weight * (loss + penalty)
    d_entropy = -objective.entropy_coef * tokens.entropy_weight
    loss += d_entropy * tokens.entropy - scaled_term(tokens.nll_weight, tokens.logprob)
    d_logprob = weight * (slope + penalty_slope) - tokens.nll_weight
    beyond = (seen < gate_ratio) | (seen > gate_ratio)
    d_ratio = tl.where(beyond, 0.0, weight * ratio_slope)
    return Score(loss, d_logprob, d_ratio, d_entropy, kl, seen, clip_low, clip_high)


@triton.jit
def store_statistics(
    statistics_ptr, i, N, tokens, score, clip_low, clip_high, HAS_REF: tl.constexpr
):
    """Writes the statistics of counted tokens, in the order of the reference's METRICS."""
    counted = tokens.weight != 0
    at = statistics_ptr + i
    tl.store(at, score.loss, mask=counted)
    tl.store(at + N, tokens.logprob, mask=counted)
    tl.store(at + 2 * N, tokens.entropy, mask=counted)
    tl.store(at + 3 * N, score.kl, mask=counted)
    first = tl.zeros_like(tokens.logprob)
    second = first
    third = first
    if HAS_REF:
        distance = tokens.logprob - tokens.ref_logprob
        first, _ = k1(distance, tokens.log_ratio)
        second, _ = k2(distance, tokens.log_ratio)
        third, _ = k3(distance, tokens.log_ratio)
    tl.store(at + 4 * N, first, mask=counted)
    tl.store(at + 5 * N, second, mask=counted)
    tl.store(at + 6 * N, third, mask=counted)
    old_kl, _ = k3(-tokens.log_ratio, tokens.log_ratio)  # the old policy drew the token
    tl.store(at + 7 * N, old_kl, mask=counted)
    tl.store(at + 8 * N, -tokens.log_ratio, mask=counted)
    tl.store(at + 9 * N, tl.exp(score.log_ratio), mask=counted)
    tl.store(at + 10 * N, clip_low.to(tl.float32), mask=counted)
    tl.store(at + 11 * N, clip_high.to(tl.float32), mask=counted)
    tl.store(at + 12 * N, tokens.correction, mask=counted)


@triton.jit
def score_rows(i, N, weight, logprob, entropy, rows, objective, statistics_ptr):
    """Returns the weighted (∂loss/∂log π, ∂loss/∂H) of tokens by their own ratios.

    Zeros for tokens that do not count; writes the statistics of the others.
    """
    counted = weight != 0
    HAS_REF: tl.constexpr = rows.ref_logprob is not None
    tokens = load_tokens(i, weight, logprob, entropy, rows)
    score = score_tokens(tokens, tokens.log_ratio, objective, HAS_REF)
    clips = score.clip_low, score.clip_high
    store_statistics(statistics_ptr, i, N, tokens, score, *clips, HAS_REF)
    d_logprob = tl.where(counted, score.d_logprob + score.d_ratio, 0.0)
    return d_logprob, tl.where(counted, score.d_entropy, 0.0)


@kernel
def sum_statistics(
    statistics_ptr, weight_ptr, loss_ptr, metrics_ptr, N: tl.int64,
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
        i = tl.cast(start, tl.int64) + tl.arange(0, BLOCK)
        counted = tl.load(weight_ptr + i, mask=i < N, other=0.0) != 0
        x = tl.load(statistics_ptr + column.to(tl.int64) * N + i, mask=counted, other=0.0)
        total += x
        count += counted.to(tl.float32)
        low = tl.where(counted, tl.minimum(low, x), low)
        high = tl.where(counted, tl.maximum(high, x), high)
    result = tl.sum(total, 0)
    tl.store(loss_ptr, result, mask=column == 0)
    tl.store(metrics_ptr + column, result, mask=column > 0)
    tl.store(metrics_ptr, tl.sum(count, 0), mask=column == 0)
    # A GPU's minimum and maximum drop NaN. A sum of ratios, none negative, is NaN only if one is.
    low = tl.where(result == result, tl.min(low, 0), result)
    high = tl.where(result == result, tl.max(high, 0), result)
    tl.store(metrics_ptr + COLUMNS, low, mask=column == RATIO)
    tl.store(metrics_ptr + COLUMNS + 1, high, mask=column == RATIO)


@lru_cache(maxsize=256)
def formulas(objective: Objective) -> Objective:
    """Returns the objective as kernels take it: functions for names, floats for numbers.

    An int among the numbers would compile a variant of its own.
    """
    numbers: list[Any] = [float(x) for x in objective.numbers]
    # A clamp that is off is not there: it would take registers that gfx942 lacks.
    numbers[-3:] = [None if math.isinf(x) else x for x in numbers[-3:]]
    facts = (tl.constexpr(objective.kl in names) for names in (STRAIGHT_THROUGH, OF_LEVEL))
    kl = Kl(KL_ESTIMATORS[objective.kl], *facts)
    return Objective.of(GATES[objective.gate], tl.constexpr(objective.level), kl, tuple(numbers))


def new_statistics(rows: Tensor) -> Tensor:
    """Returns the uninitialised statistics buffer of these rows."""
    return torch.empty((COLUMNS, rows.numel()), dtype=torch.float32, device=rows.device)


def loss_and_metrics(statistics: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics): the sum of the weighted losses, and the reference's METRICS."""
    loss = torch.empty((), dtype=torch.float32, device=weight.device)
    metrics = torch.empty((COLUMNS + 2,), dtype=torch.float32, device=weight.device)
    arguments = (statistics, aligned(weight), loss, metrics, weight.numel())
    constants = {"COLUMNS": COLUMNS, "RATIO": _RATIO, "BLOCK": _BLOCK}
    sum_statistics[(COLUMNS,)](*arguments, **constants, num_warps=4, enable_fp_fusion=True)
    return loss, metrics
