# SPDX-License-Identifier: Apache-2.0
"""Per-row statistics and their reduction to the loss and the metrics vector, in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of the statistics buffer, (columns, N): loss, then the reference's METRICS[1:8] (logprob,
# entropy, kl, old_kl, ratio, clip_low, clip_high). count, ratio_min and ratio_max come from the weights
# and the ratio when the columns are reduced.
COLUMNS = 8
_BLOCK = 1024


@triton.jit
def store_statistics(
    stats_ptr, row, N, inside, counted, loss, logprob, entropy, kl, old_kl, ratio, low, high
):
    """Writes the statistics of rows, 0 for rows that do not count."""
    at = stats_ptr + row
    tl.store(at, tl.where(counted, loss, 0.0), mask=inside)
    tl.store(at + N, tl.where(counted, logprob, 0.0), mask=inside)
    tl.store(at + 2 * N, tl.where(counted, entropy, 0.0), mask=inside)
    tl.store(at + 3 * N, tl.where(counted, kl, 0.0), mask=inside)
    tl.store(at + 4 * N, tl.where(counted, old_kl, 0.0), mask=inside)
    tl.store(at + 5 * N, tl.where(counted, ratio, 0.0), mask=inside)
    tl.store(at + 6 * N, tl.where(counted, low, 0.0), mask=inside)
    tl.store(at + 7 * N, tl.where(counted, high, 0.0), mask=inside)


@triton.jit(
    do_not_specialize=["N"], do_not_specialize_on_alignment=["stats_ptr", "weight_ptr", "metrics_ptr"]
)
def reduce_statistics(
    stats_ptr, weight_ptr, loss_ptr, metrics_ptr, N: tl.int64, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """One program per column of statistics; rows in a fixed order, no atomics: two runs, the same bits.

    - reads its column of the statistics, and the weights
    - writes the loss (program 0) or one sum of the metrics; the ratio's program its bounds, the loss's the count
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
    reduce_statistics[(COLUMNS,)](
        statistics, weight, loss, metrics, weight.numel(), COLUMNS=COLUMNS, BLOCK=_BLOCK,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return loss, metrics
