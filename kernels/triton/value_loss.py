# SPDX-License-Identifier: Apache-2.0
"""The loss of a value estimate, its metrics and its gradient.

The definitions are rlkern/backends/eager/value_loss.py. Sums are in float64, by block and then
over the blocks in order: no atomics, and a variance can be taken from them.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.value_loss import VALUE_KINDS
from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._math import larger, smaller
from rlkern.backends.triton._rows import row_scalar

# Columns of the buffer of block sums: the weighted loss, then VALUE_METRICS of the reference.
COLUMNS = 8
# Elements of a program of 4 warps: one 16-byte access per thread and vector. Few sums per block,
# and few blocks, so that adding these up is a short second launch.
_BLOCK = 512
_BLOCKS_AT_A_TIME = 256


class Elements(NamedTuple):
    """What is known of each element."""

    value: Tensor
    target: Tensor
    old_value: Tensor | None
    weight: Tensor


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
    near = smaller(larger(value, old_value - clip), old_value + clip)
    held, held_slope = penalised(near - target, delta, PENALTY)
    if RULE == "clipped":
        moved = (near < value) | (near > value)  # false for NaN, which shows in the slope
        return held, tl.where(moved, 0.0, held_slope), moved
    clipped = held > free
    slope = tl.where(held == held, slope, held_slope)  # NaN shows in loss and slope
    return larger(held, free), tl.where(clipped, 0.0, slope), clipped


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


@kernel
def value_loss_kernel(
    elements, sums_ptr, grad_ptr, N: tl.int64, blocks: tl.int64, clip: tl.float32,
    delta: tl.float32, PENALTY: tl.constexpr, RULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per block of elements.

    - reads value, target, old value and weight; of an element of weight 0 nothing but the weight
    - writes the gradient and eight sums per block
    - never materialises errors or clipped estimates
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    weight = tl.load(elements.weight + i, mask=inside, other=0.0)
    counted = weight != 0
    value = tl.load(elements.value + i, mask=counted, other=0.0)
    target = tl.load(elements.target + i, mask=counted, other=0.0)
    old = row_scalar(elements.old_value, i, counted, 0.0)
    term, slope, clipped = value_term(value, target, old, clip, delta, PENALTY, RULE)
    store_block_sums(sums_ptr, blocks, counted, weight * term, value, target, clipped)
    tl.store(grad_ptr + i, tl.where(counted, weight * slope, 0.0), mask=inside)


@kernel
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


def value_loss(
    value: Tensor, target: Tensor, old_value: Tensor | None, weight: Tensor, kind: str, coef: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_value) of loss = Σ weight·ℓ."""
    grad_value, N, device = torch.empty_like(value), value.numel(), value.device
    blocks = triton.cdiv(N, _BLOCK)
    sums = torch.empty((COLUMNS, blocks), dtype=torch.float64, device=device)
    loss = torch.empty((), dtype=torch.float32, device=device)
    metrics = torch.empty((COLUMNS - 1,), dtype=torch.float64, device=device)
    penalty, rule = VALUE_KINDS[kind]
    options = {"num_warps": 4, "enable_fp_fusion": True}
    with torch.cuda.device_of(value):
        if N:
            value_loss_kernel[(blocks,)](
                aligned(Elements(value, target, old_value, weight)), sums, grad_value, N, blocks,
                *coef.tolist(), PENALTY=penalty.__name__, RULE=rule, BLOCK=_BLOCK, **options,
            )  # fmt: skip
        sum_value_blocks[(COLUMNS,)](
            sums, loss, metrics, blocks, BLOCK=_BLOCKS_AT_A_TIME, **options
        )
    return loss, metrics, grad_value
