# SPDX-License-Identifier: Apache-2.0
"""Generalised advantage estimates and value targets, padded or packed, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.kernels.reverse_scan import compose, launch_shape, sequence_bounds
from rlkern.reference.whiten import whiten as whitened


@triton.jit
def _nearer(far_value, far_known, near_value, near_known):
    """Returns the nearer of two values that is known, and whether either is."""
    return tl.where(near_known != 0, near_value, far_value), near_known | far_known


@triton.jit(
    do_not_specialize=["T", "discount", "decay"],
    do_not_specialize_on_alignment=[
        "reward_ptr", "value_ptr", "mask_ptr", "rates_ptr", "bootstrap_ptr", "bounds_ptr",
        "advantage_ptr", "target_ptr",
    ],
)  # fmt: skip
def gae_kernel(
    reward_ptr, value_ptr, mask_ptr, rates_ptr, bootstrap_ptr, bounds_ptr, advantage_ptr,
    target_ptr, discount: tl.float32, decay: tl.float32, T: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per sequence, in blocks counted from its beginning, swept from its end.

    - reads reward once, value and mask twice, the second time one step ahead and from the cache
    - writes advantage and target once
    - never materialises δ or the value of the next counted step; from block to block go two scalars
    """
    sequence = tl.program_id(0)
    base, length = sequence_bounds(sequence, T, bounds_ptr)
    if rates_ptr is not None:  # (2, sequences): discount, and discount·λ
        discount = tl.load(rates_ptr + sequence)
        decay = tl.load(rates_ptr + tl.num_programs(0) + sequence)
    after = tl.zeros((), tl.float32)
    if bootstrap_ptr is not None:
        after += tl.load(bootstrap_ptr + sequence)
    advantage_carry = tl.zeros((), tl.float32)
    value_carry = after
    step = tl.arange(0, BLOCK)
    for back in range(0, length, BLOCK):
        t = (length - 1) // BLOCK * BLOCK - back + BLOCK - 1 - step
        here, ahead = base + t, t + 1 < length
        counts = tl.load(mask_ptr + here, mask=t < length, other=0) != 0
        # What is masked may hold anything: it is not read.
        reward = tl.load(reward_ptr + here, mask=counts, other=0.0)
        value = tl.load(value_ptr + here, mask=counts, other=0.0)
        known = tl.load(mask_ptr + here + 1, mask=ahead, other=0) != 0
        next_value = tl.load(value_ptr + here + 1, mask=known, other=0.0)
        following, known = tl.associative_scan((next_value, known.to(tl.int32)), 0, _nearer)
        following = tl.where(known != 0, following, value_carry)
        delta = tl.where(counts, reward + discount * following - value, 0.0)
        rate, bias = tl.associative_scan((tl.where(counts, decay, 1.0), delta), 0, compose)
        x = tl.where(rate == 0, bias, rate * advantage_carry + bias)
        tl.store(advantage_ptr + here, tl.where(counts, x, 0.0), mask=t < length)
        tl.store(target_ptr + here, tl.where(counts, x + value, 0.0), mask=t < length)
        last = step == BLOCK - 1
        advantage_carry = tl.sum(tl.where(last, x, 0.0), 0)
        value_carry = tl.sum(tl.where(last, following, 0.0), 0)


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    whiten: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns (advantage, target) in one launch; whitening takes PyTorch's own sums after it."""
    advantage, target = torch.empty_like(reward), torch.empty_like(reward)
    sequences, block, warps = launch_shape(reward, cu_seqlens)
    rates, discount, decay = None, 0.0, 0.0
    if coefficients.ndim == 2:
        rates = torch.stack([coefficients[0], coefficients[0] * coefficients[1]]).to(reward.dtype)
    else:
        discount, gae_lambda = coefficients.tolist()
        decay = discount * gae_lambda
    if reward.numel():
        with torch.cuda.device_of(reward):
            gae_kernel[(sequences,)](
                reward, value, mask, rates, bootstrap, cu_seqlens, advantage, target, discount,
                decay, reward.shape[-1], BLOCK=block, num_warps=warps, enable_fp_fusion=True,
            )  # fmt: skip
    return (whitened(advantage, mask) if whiten else advantage), target
