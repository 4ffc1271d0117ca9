# SPDX-License-Identifier: Apache-2.0
"""Group-relative advantages, one program per group."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 128


@triton.jit
def _member(reward_ptr, order_ptr, at, end):
    """Returns (index, reward, known) of a block of members; NaN rewards are not known."""
    index = tl.load(order_ptr + at, mask=at < end, other=0)
    r = tl.load(reward_ptr + index, mask=at < end, other=float("nan"))
    known = r == r
    return index, tl.where(known, r, 0.0), known


@triton.jit(
    do_not_specialize_on_alignment=["reward_ptr", "order_ptr", "offset_ptr", "advantage_ptr"]
)
def group_advantage_kernel(
    reward_ptr, order_ptr, offset_ptr, advantage_ptr, eps: tl.float32, ddof: tl.float32,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per group, the groups that do not exist being empty.

    - reads the group's rewards four times: for the mean, twice, the deviation and the result
    - writes each advantage once
    - never materialises means per reward
    """
    group = tl.program_id(0).to(tl.int64)
    begin = tl.load(offset_ptr + group)
    end = tl.load(offset_ptr + group + 1)
    total = tl.zeros((), tl.float32)
    n = tl.zeros((), tl.float32)
    for start in range(begin, end, BLOCK):
        _, r, known = _member(reward_ptr, order_ptr, start + tl.arange(0, BLOCK), end)
        total += tl.sum(r, 0)
        n += tl.sum(known.to(tl.float32), 0)
    mean = total / tl.maximum(n, 1.0)
    # Again, for the rounding of the sum: a group that agrees leaves nothing for eps to magnify.
    total = tl.zeros((), tl.float32)
    for start in range(begin, end, BLOCK):
        _, r, known = _member(reward_ptr, order_ptr, start + tl.arange(0, BLOCK), end)
        total += tl.sum(tl.where(known, r - mean, 0.0), 0)
    mean += total / tl.maximum(n, 1.0)
    factor = n / tl.maximum(n - 1, 1.0) if KIND == "leave_one_out" else 1.0
    if KIND == "normalized":
        squares = tl.zeros((), tl.float32)
        for start in range(begin, end, BLOCK):
            _, r, known = _member(reward_ptr, order_ptr, start + tl.arange(0, BLOCK), end)
            squares += tl.sum(tl.where(known, (r - mean) * (r - mean), 0.0), 0)
        deviation = tl.sqrt(squares / tl.maximum(n - ddof, 1.0)) + eps
        factor = tl.where(deviation > 0, 1.0 / deviation, 0.0)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        index, r, known = _member(reward_ptr, order_ptr, at, end)
        compared = tl.where(n > 1, (r - mean) * factor, 0.0)
        tl.store(advantage_ptr + index, tl.where(known, compared, 0.0), mask=at < end)


def group_advantage(
    reward: Tensor, order: Tensor, offset: Tensor, kind: str, eps: float, ddof: int
) -> Tensor:
    """Returns each reward's advantage in its group; group i is order[offset[i]:offset[i+1]]."""
    advantage = torch.empty_like(reward)
    if reward.numel():
        with torch.cuda.device_of(reward):
            group_advantage_kernel[(reward.numel(),)](
                reward, order, offset, advantage, eps, float(ddof), KIND=kind, BLOCK=_BLOCK,
                num_warps=1, enable_fp_fusion=True,
            )  # fmt: skip
    return advantage
