# SPDX-License-Identifier: Apache-2.0
"""Generalised advantage estimates and value targets, padded or packed."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.whiten import whiten
from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._scan import BLOCK, WARPS, Maps, plan, scan_tile, serve, share, tile


class Steps(NamedTuple):
    """What is known of each step."""

    reward: Tensor
    value: Tensor
    mask: Tensor


class Rates(NamedTuple):
    """The discount and discount·λ: of all sequences, or (2, sequences) of each."""

    discount: float
    decay: float
    of_sequences: Tensor | None


class Out(NamedTuple):
    """What is written."""

    advantage: Tensor
    target: Tensor


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


@kernel
def gae_kernel(
    steps, rates, bootstrap_ptr, out, maps, owners, T: tl.int64, sequences: tl.int64,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One program per tile of sequences, per sequence, or per block, as _scan.py says.

    - reads reward once, value and mask twice, the second time one step ahead and from the cache
    - writes advantage and target once; without them, the map of its block
    - never materialises δ or the value of the next counted step; from block to block go two scalars
    """
    program = tl.program_id(0)
    sequence, base, length, block, blocks = share(T, sequences, owners, CHAINED)
    present = sequence < sequences
    discount, decay = rates.discount, rates.decay
    if rates.of_sequences is not None:  # (2, sequences)
        discount = tl.load(rates.of_sequences + sequence, mask=present, other=0.0)
        decay = tl.load(rates.of_sequences + sequences + sequence, mask=present, other=0.0)
    advantage_carry = tl.zeros((), tl.float32)
    value_carry = tl.zeros((), tl.float32)
    if bootstrap_ptr is not None:
        value_carry = tl.load(bootstrap_ptr + sequence, mask=present, other=0.0)
    for back in range(0, blocks):
        begin, step, left = tile(base, length, block - back, CHAINED)
        here, exists = begin + step, step < left
        if out is None:
            value_carry = _value_from(
                steps.value, steps.mask, begin + BLOCK, base + length, value_carry
            )
            tl.store(maps.callers + program, value_carry)
        elif maps is not None:
            advantage_carry = tl.load(maps.entering + program)
            value_carry = tl.load(maps.callers + program)
        counts = tl.load(steps.mask + here, mask=exists, other=0) != 0
        # What is masked may hold anything: it is not read.
        reward = tl.load(steps.reward + here, mask=counts, other=0.0)
        value = tl.load(steps.value + here, mask=counts, other=0.0)
        known = tl.load(steps.mask + here + 1, mask=step + 1 < left, other=0) != 0
        next_value = tl.load(steps.value + here + 1, mask=known, other=0.0)
        # Decays of 0 and 1 copy the value of the next counted step exactly.
        following, value_carry, _, _ = scan_tile(
            tl.where(known, 0.0, 1.0), next_value, value_carry, CHAINED
        )
        delta = tl.where(counts, tl.fma(following, discount, reward) - value, 0.0)
        rate = tl.where(counts, decay, 1.0)
        x, advantage_carry, rate, bias = scan_tile(rate, delta, advantage_carry, CHAINED)
        if out is None:
            tl.store(maps.decay + program, rate)
            tl.store(maps.bias + program, bias)
        else:
            tl.store(out.advantage + here, tl.where(counts, x, 0.0), mask=exists)
            tl.store(out.target + here, tl.where(counts, x + value, 0.0), mask=exists)


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    ddof: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns (advantage, target); whitening takes PyTorch's own sums after them."""
    out = Out(torch.empty_like(reward), torch.empty_like(reward))
    planned = plan(reward, cu_seqlens)
    steps, bootstrap = aligned(Steps(reward, value, mask)), aligned(bootstrap)
    if coefficients.ndim == 2:
        both = torch.stack([coefficients[0], coefficients[0] * coefficients[1]])
        rates = Rates(0.0, 0.0, both.to(reward.dtype))
    else:
        discount, gae_lambda = coefficients.tolist()
        rates = Rates(discount, discount * gae_lambda, None)

    def launch(maps: Maps | None, sweeps: bool) -> None:
        gae_kernel[(planned.programs,)](
            steps, rates, bootstrap, out if sweeps else None, maps, planned.owners,
            reward.shape[-1], planned.sequences, CHAINED=planned.chained, num_warps=WARPS,
            enable_fp_fusion=True,
        )  # fmt: skip

    if reward.numel():
        serve(planned, reward, launch)
    if ddof is None:
        return out.advantage, out.target
    return whiten(out.advantage, mask, ddof=ddof), out.target
