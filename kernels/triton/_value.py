# SPDX-License-Identifier: Apache-2.0
"""The Triton home of the value losses, and the sums that value_loss and td_loss share.

The definitions are rlkern/backends/eager/value_loss.py. Sums are in float64, block by block and
then over the blocks in order: no atomics, and a variance can be taken from them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of the buffer of block sums: the weighted loss, then VALUE_METRICS of the reference.
COLUMNS = 8
_BLOCK = 256


@triton.jit
def penalised(error, delta, PENALTY: tl.constexpr):
    """Returns the penalty of an error and its derivative in the error."""
    if PENALTY == "half_square":
        return 0.5 * error * error, error
    elif PENALTY == "square":
        return error * error, 2.0 * error
    else:
        size = tl.abs(error)
        inside = size <= delta
        tangent = tl.where(error > 0, delta, -delta)
        value = tl.where(inside, 0.5 * error * error, delta * (size - 0.5 * delta))
        # A NaN error is not inside, and must show in the slope as well.
        return value, tl.where(inside | (error != error), error, tangent)


@triton.jit
def value_term(
    value, target, old_value, clip, delta, PENALTY: tl.constexpr, RULE: tl.constexpr
):  # fmt: skip
    """Returns (ℓ, ∂ℓ/∂value, clipped) of elements."""
    free, slope = penalised(value - target, delta, PENALTY)
    clipped = value != value
    if RULE == "free":
        return free, slope, clipped & False
    near = tl.minimum(tl.maximum(value, old_value - clip), old_value + clip)
    near = tl.where(value != value, value, near)
    held, held_slope = penalised(near - target, delta, PENALTY)
    if RULE == "clipped":
        moved = near != value
        return held, tl.where(moved & (value == value), 0.0, held_slope), moved
    clipped = held > free  # false for NaN, which shows in the loss
    return tl.where(clipped, held, free), tl.where(clipped, 0.0, slope), clipped


@triton.jit
def store_block_sums(sums_ptr, blocks, counted, loss, value, target, clipped):
    """Writes this program's sums; elements that do not count must come with zeros."""
    at = sums_ptr + tl.program_id(0).to(tl.int64)
    wide, aim = value.to(tl.float64), target.to(tl.float64)
    error = aim - wide
    tl.store(at, tl.sum(loss.to(tl.float64), 0))
    tl.store(at + blocks, tl.sum(counted.to(tl.float64), 0))
    tl.store(at + 2 * blocks, tl.sum(wide, 0))
    tl.store(at + 3 * blocks, tl.sum(aim, 0))
    tl.store(at + 4 * blocks, tl.sum(error, 0))
    tl.store(at + 5 * blocks, tl.sum(error * error, 0))
    tl.store(at + 6 * blocks, tl.sum(aim * aim, 0))
    tl.store(at + 7 * blocks, tl.sum((clipped & counted).to(tl.float64), 0))


@triton.jit(
    do_not_specialize=["blocks"],
    do_not_specialize_on_alignment=["sums_ptr", "loss_ptr", "metrics_ptr"],
)
def sum_value_blocks(sums_ptr, loss_ptr, metrics_ptr, blocks: tl.int64, BLOCK: tl.constexpr):
    """One program per column of block sums.

    - reads its column
    - writes the loss or a metric
    - never materialises anything
    """
    column = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, blocks, BLOCK):
        at = tl.cast(start, tl.int64) + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + column * blocks + at, mask=at < blocks, other=0.0)
    result = tl.sum(total, 0)
    tl.store(loss_ptr, result.to(tl.float32), mask=column == 0)
    tl.store(metrics_ptr + column - 1, result, mask=column > 0)


def new_sums(like: Tensor, blocks: int) -> Tensor:
    """Returns the uninitialised buffer of the sums of so many blocks."""
    return torch.empty((COLUMNS, blocks), dtype=torch.float64, device=like.device)


def loss_and_metrics(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics) from the sums of the blocks."""
    loss = torch.empty((), dtype=torch.float32, device=sums.device)
    metrics = torch.empty((COLUMNS - 1,), dtype=torch.float64, device=sums.device)
    sum_value_blocks[(COLUMNS,)](
        sums, loss, metrics, sums.shape[1], BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=True
    )
    return loss, metrics
