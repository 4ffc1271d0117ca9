# SPDX-License-Identifier: Apache-2.0
"""Generalised advantage estimates and value targets, padded or packed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.whiten import whiten as whitened
from rlkern.backends.triton._scan import BLOCK, WARPS, plan, scan_tile, serve, share, tile


@triton.jit
def _value_from(value_ptr, mask_ptr, begin, end, after):
    """Returns the value of the first counted step in [begin, end), `after` where there is none."""
    first = end
    while (first == end) & (begin < end):
        step = begin + tl.arange(0, BLOCK)
        counts = tl.load(mask_ptr + step, mask=step < end, other=0) != 0
        first = tl.min(tl.where(counts, step, end), 0)
        begin += BLOCK
    return tl.load(value_ptr + first, mask=first < end, other=after)


@triton.jit(
    do_not_specialize=["T", "sequences", "discount", "decay"],
    do_not_specialize_on_alignment=[
        "reward_ptr", "value_ptr", "mask_ptr", "rates_ptr", "bootstrap_ptr", "bounds_ptr",
        "owner_ptr", "map_ptr", "advantage_ptr", "target_ptr",
    ],
)  # fmt: skip
def gae_kernel(
    reward_ptr, value_ptr, mask_ptr, rates_ptr, bootstrap_ptr, bounds_ptr, owner_ptr, map_ptr,
    advantage_ptr, target_ptr, discount: tl.float32, decay: tl.float32, T: tl.int64,
    sequences: tl.int64, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program per tile of sequences, per sequence, or per block, as _scan.py says.

    - reads reward once, value and mask twice, the second time one step ahead and from the cache
    - writes advantage and target once; without them, the map of its block
    - never materialises δ or the value of the next counted step; from block to block go two scalars
    """
    program, slots = tl.program_id(0), tl.num_programs(0)
    sequence, base, length, block, blocks = share(T, sequences, bounds_ptr, owner_ptr, CHAINED)
    present = sequence < sequences
    if rates_ptr is not None:  # (2, sequences): discount, and discount·λ
        discount = tl.load(rates_ptr + sequence, mask=present, other=0.0)
        decay = tl.load(rates_ptr + sequences + sequence, mask=present, other=0.0)
    advantage_carry = tl.zeros((), tl.float32)
    value_carry = tl.zeros((), tl.float32)
    if bootstrap_ptr is not None:
        value_carry = tl.load(bootstrap_ptr + sequence, mask=present, other=0.0)
    for back in range(0, blocks):
        begin, step, left = tile(base, length, block - back, CHAINED)
        here, exists = begin + step, step < left
        if advantage_ptr is None:
            value_carry = _value_from(
                value_ptr, mask_ptr, begin + BLOCK, base + length, value_carry
            )
            tl.store(map_ptr + 3 * slots + program, value_carry)
        elif map_ptr is not None:
            advantage_carry = tl.load(map_ptr + 2 * slots + program)
            value_carry = tl.load(map_ptr + 3 * slots + program)
        counts = tl.load(mask_ptr + here, mask=exists, other=0) != 0
        # What is masked may hold anything: it is not read.
        reward = tl.load(reward_ptr + here, mask=counts, other=0.0)
        value = tl.load(value_ptr + here, mask=counts, other=0.0)
        known = tl.load(mask_ptr + here + 1, mask=step + 1 < left, other=0) != 0
        next_value = tl.load(value_ptr + here + 1, mask=known, other=0.0)
        # Decays of 0 and 1 copy the value of the next counted step exactly.
        following, value_carry, _, _ = scan_tile(
            tl.where(known, 0.0, 1.0), next_value, value_carry, CHAINED
        )
        delta = tl.where(counts, tl.fma(following, discount, reward) - value, 0.0)
        rate = tl.where(counts, decay, 1.0)
        x, advantage_carry, rate, bias = scan_tile(rate, delta, advantage_carry, CHAINED)
        if advantage_ptr is None:
            tl.store(map_ptr + program, rate)
            tl.store(map_ptr + slots + program, bias)
        else:
            tl.store(advantage_ptr + here, tl.where(counts, x, 0.0), mask=exists)
            tl.store(target_ptr + here, tl.where(counts, x + value, 0.0), mask=exists)


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    whiten: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns (advantage, target); whitening takes PyTorch's own sums after them."""
    advantage, target = torch.empty_like(reward), torch.empty_like(reward)
    planned = plan(reward, cu_seqlens)
    rates, discount, decay = None, 0.0, 0.0
    if coefficients.ndim == 2:
        rates = torch.stack([coefficients[0], coefficients[0] * coefficients[1]]).to(reward.dtype)
    else:
        discount, gae_lambda = coefficients.tolist()
        decay = discount * gae_lambda

    def launch(maps: Tensor | None, sweeps: bool) -> None:
        out = (advantage, target) if sweeps else (None, None)
        gae_kernel[(planned.programs,)](
            reward, value, mask, rates, bootstrap, planned.bounds, planned.owner, maps, *out,
            discount, decay, reward.shape[-1], planned.sequences, CHAINED=planned.chained,
            num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip

    if reward.numel():
        serve(planned, reward, launch)
    return (whitened(advantage, mask) if whiten else advantage), target
