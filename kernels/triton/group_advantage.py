# SPDX-License-Identifier: Apache-2.0
"""Group-relative advantages, one program per group."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# A GPU sorts ids by torch's own radix sort; there is nothing to fuse it with.
from rlkern.backends.eager.group_advantage import group_segments as group_segments
from rlkern.backends.triton._launch import aligned

# Members per block of a program of one warp: 4 per thread. Most groups have 4 to 64 members.
_BLOCK = 128


class Members(NamedTuple):
    """Group i are the rewards order[offset[i]:offset[i + 1]]."""

    reward: Tensor
    order: Tensor
    offset: Tensor
    length: Tensor | None


@triton.jit
def _member(members, at, end):
    """Returns (index, reward, known) of a block of members; NaN rewards are not known."""
    index = tl.load(members.order + at, mask=at < end, other=0)
    r = tl.load(members.reward + index, mask=at < end, other=float("nan"))
    known = r == r
    return index, tl.where(known, r, 0.0), known


@triton.jit
def _mean(members, begin, end, BLOCK: tl.constexpr):
    """Returns (mean, number) of a group's known rewards."""
    mean = tl.zeros((), tl.float32)
    n = tl.zeros((), tl.float32)
    # Twice, for the rounding of the sum: a group that agrees leaves nothing for eps to magnify.
    for again in tl.static_range(2):
        total = tl.zeros((), tl.float32)
        for start in range(begin, end, BLOCK):
            _, r, known = _member(members, start + tl.arange(0, BLOCK), end)
            total += tl.sum(tl.where(known, r - mean, 0.0), 0)
            if again == 0:
                n += tl.sum(known.to(tl.float32), 0)
        mean += total / tl.maximum(n, 1.0)
    return mean, n


@triton.jit
def _deviation(members, begin, end, mean, divisor, BLOCK: tl.constexpr):
    """Returns the standard deviation of a group's known rewards."""
    squares = tl.zeros((), tl.float32)
    for start in range(begin, end, BLOCK):
        _, r, known = _member(members, start + tl.arange(0, BLOCK), end)
        squares += tl.sum(tl.where(known, (r - mean) * (r - mean), 0.0), 0)
    return tl.sqrt(squares / tl.maximum(divisor, 1.0))


@triton.jit
def _shift_by_length(members, begin, end, mean, BLOCK: tl.constexpr):
    """Returns how far the mean by length is from the plain one."""
    tokens = tl.zeros((), tl.float32)
    total = tl.zeros((), tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        index, r, known = _member(members, at, end)
        length = tl.load(members.length + index, mask=known, other=0.0)
        tokens += tl.sum(length, 0)
        total += tl.sum(tl.where(known, length * (r - mean), 0.0), 0)
    return tl.where(tokens > 0, total / tokens, 0.0)


@triton.jit
def _second(members, begin, end, BLOCK: tl.constexpr):
    """Returns the best reward but one; the best itself where two share it."""
    top = tl.full((), float("-inf"), tl.float32)
    second = tl.full((), float("-inf"), tl.float32)
    for start in range(begin, end, BLOCK):
        _, r, known = _member(members, start + tl.arange(0, BLOCK), end)
        r = tl.where(known, r, float("-inf"))
        block_top = tl.max(r, 0)
        tied = tl.sum((r == block_top).to(tl.int32), 0)
        below = tl.max(tl.where(r < block_top, r, float("-inf")), 0)
        block_second = tl.where(tied > 1, block_top, below)
        second = tl.maximum(tl.minimum(top, block_top), tl.maximum(second, block_second))
        top = tl.maximum(top, block_top)
    return second


@triton.jit
def group_advantage_kernel(
    members, advantage_ptr, eps: tl.float32, ddof: tl.float32, KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per group, the groups that do not exist being empty.

    - reads the group's rewards three to five times: twice for the mean, once for each statistic
      that the kind has besides, once for the result; after the first time they come from L1
    - writes each advantage once
    - never materialises statistics per reward
    """
    group = tl.program_id(0).to(tl.int64)
    begin = tl.load(members.offset + group)
    end = tl.load(members.offset + group + 1)
    mean, n = _mean(members, begin, end, BLOCK)
    baseline = mean
    factor = tl.full((), 1.0, tl.float32)
    BEST: tl.constexpr = KIND == "pass_at_k" or KIND == "pass_at_k_normalized"
    if BEST:
        baseline = _second(members, begin, end, BLOCK)
    elif KIND == "length_weighted":
        shift = _shift_by_length(members, begin, end, mean, BLOCK)
    elif KIND == "leave_one_out":
        factor = n / tl.maximum(n - 1, 1.0)
    elif KIND == "max_rl":
        factor = tl.where(mean > 0, 1.0 / mean, 0.0)
    if KIND == "normalized" or KIND == "pass_at_k_normalized":
        deviation = _deviation(members, begin, end, mean, n - ddof, BLOCK) + eps
        factor = tl.where(deviation > 0, 1.0 / deviation, 0.0)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        index, r, known = _member(members, at, end)
        compared = r - baseline
        if BEST:
            compared = tl.maximum(compared, 0.0)
        elif KIND == "length_weighted":
            # Not by a baseline of mean + shift, which would round a second time.
            compared -= shift
        compared = tl.where(n > 1, compared * factor, 0.0)
        tl.store(advantage_ptr + index, tl.where(known, compared, 0.0), mask=at < end)


def group_advantage(
    reward: Tensor,
    order: Tensor,
    offset: Tensor,
    kind: str,
    eps: float,
    ddof: int,
    length: Tensor | None = None,
) -> Tensor:
    """Returns each reward's advantage in its group; group i is order[offset[i]:offset[i+1]]."""
    advantage = torch.empty_like(reward)
    if reward.numel():
        members = aligned(Members(reward, order, offset, length))
        with torch.cuda.device_of(reward):
            group_advantage_kernel[(reward.numel(),)](
                members, advantage, eps, float(ddof), KIND=kind, BLOCK=_BLOCK,
                num_warps=1, enable_fp_fusion=True,
            )  # fmt: skip
    return advantage
