# SPDX-License-Identifier: Apache-2.0
"""Scores tokens by the objective; sums the scores of all rows in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.kernels._math import policy_change, token_terms

# Rows of the statistics buffer (COLUMNS, N): the weighted loss, then METRICS[1:8] of the reference
# (logprob, entropy, kl, old_kl, ratio, clip_low, clip_high). The rest of METRICS (count, ratio_min,
# ratio_max) comes from the weights and the ratio while these are summed.
COLUMNS = 8
_BLOCK = 1024


@triton.jit
def score_tokens(
    row, inside, N, weight, logprob, entropy, advantage, old, ref, stats_ptr,
    c0, c1, kl_coef, entropy_coef,
    GATE: tl.constexpr, KL: tl.constexpr, HAS_OLD: tl.constexpr, HAS_REF: tl.constexpr,
):  # fmt: skip
    """Returns the weighted (∂loss/∂log π, ∂loss/∂H) of tokens and writes their statistics.

    Tokens of weight 0 must come with zeros for all else, and get zeros.
    """
    if not HAS_OLD:
        old = logprob  # on policy: the ratio is 1
    loss, d_logprob, d_entropy, kl = token_terms(
        logprob, entropy, advantage, old, ref, c0, c1, kl_coef, entropy_coef, GATE, KL, HAS_REF
    )
    old_kl, ratio, low, high = policy_change(logprob, old, advantage, c0, c1)
    at = stats_ptr + row
    tl.store(at, weight * loss, mask=inside)
    tl.store(at + N, logprob, mask=inside)
    tl.store(at + 2 * N, entropy, mask=inside)
    tl.store(at + 3 * N, kl, mask=inside)
    tl.store(at + 4 * N, old_kl, mask=inside)
    tl.store(at + 5 * N, tl.where(weight != 0, ratio, 0.0), mask=inside)
    tl.store(at + 6 * N, low, mask=inside)
    tl.store(at + 7 * N, high, mask=inside)
    return weight * d_logprob, weight * d_entropy


@triton.jit(
    do_not_specialize=["N"],
    do_not_specialize_on_alignment=["stats_ptr", "weight_ptr", "loss_ptr", "metrics_ptr"],
)
def sum_statistics(
    stats_ptr, weight_ptr, loss_ptr, metrics_ptr, N: tl.int64,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per column of statistics; a fixed order and no atomics: two runs, the same bits.

    - reads its column, and the weights
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
        x = tl.load(stats_ptr + column.to(tl.int64) * N + row, mask=row < N, other=0.0)
        counted = tl.load(weight_ptr + row, mask=row < N, other=0.0) != 0
        total += x
        count += counted.to(tl.float32)
        low = tl.where(counted, tl.minimum(low, x), low)
        high = tl.where(counted, tl.maximum(high, x), high)
    tl.store(loss_ptr, tl.sum(total, 0), mask=column == 0)
    tl.store(metrics_ptr + column, tl.sum(total, 0), mask=column > 0)
    tl.store(metrics_ptr, tl.sum(count, 0), mask=column == 0)
    tl.store(metrics_ptr + COLUMNS, tl.min(low, 0), mask=column == 5)
    tl.store(metrics_ptr + COLUMNS + 1, tl.max(high, 0), mask=column == 5)


def new_statistics(rows: Tensor) -> Tensor:
    """Returns the uninitialised statistics buffer of these rows."""
    return torch.empty((COLUMNS, rows.numel()), dtype=torch.float32, device=rows.device)


def loss_and_metrics(statistics: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics): the sum of the weighted losses, and the reference's METRICS."""
    loss = torch.empty((), dtype=torch.float32, device=weight.device)
    metrics = torch.empty((COLUMNS + 2,), dtype=torch.float32, device=weight.device)
    sum_statistics[(COLUMNS,)](
        statistics, weight, loss, metrics, weight.numel(), COLUMNS=COLUMNS, BLOCK=_BLOCK,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return loss, metrics
