# SPDX-License-Identifier: Apache-2.0
"""Generalised advantage estimates and value targets, padded or packed."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.whiten import whiten
from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._scan import (
    BLOCK,
    LANES,
    ROWS,
    STEPS,
    Maps,
    block_at,
    in_every_lane,
    lane_before,
    of_lane,
    plan,
    row_of,
    scan_block,
    serve,
    share,
    steps_of,
    steps_of_row,
    store_once,
)


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
    found = tl.load(value_ptr + first, mask=first < end, other=0.0)
    return tl.where(first < end, found, after)


@triton.jit
def _later(near, far):
    return tl.maximum(near, far)


@triton.jit
def _load_masks(mask_ptr, begin, left):
    """Returns the masks (LANES, STEPS) of the rows of a block, as bytes."""
    masks = ()
    for r in tl.static_range(ROWS):
        step = steps_of_row(r)
        masks += (tl.load(mask_ptr + begin + step, mask=step < left, other=0),)
    return masks


@triton.jit
def _counts_of(mask):
    """Returns which of its STEPS count, for each lane of a row."""
    first, second, third, fourth = steps_of(mask)
    return first != 0, second != 0, third != 0, fourth != 0


@triton.jit
def _load_counted(x_ptr, begin, left, counts, r: tl.constexpr):
    """Returns x of the STEPS of a row, anything where a step does not count.

    A lane without a step that counts reads nothing.
    """
    step = steps_of_row(r)
    some = (counts[0] | counts[1] | counts[2] | counts[3])[:, None]
    return steps_of(tl.load(x_ptr + begin + step, mask=(step < left) & some, other=0.0))


@triton.jit
def _following_values(counts, value, after):
    """Returns the value of the next counted step after each of the STEPS, and from the row's begin.

    They are copies, so that δ has no digits fewer where values are large. `after` follows the row.
    """
    first, some = value[STEPS - 1], counts[STEPS - 1]
    for step in tl.static_range(STEPS - 2, -1, -1):
        first = tl.where(counts[step], value[step], first)
        some |= counts[step]
    nearest = tl.associative_scan(tl.where(some, tl.arange(0, LANES), -1), 0, _later)
    known = tl.gather(first, tl.maximum(nearest, 0), 0)
    known = tl.where(nearest < 0, after, known)
    fourth = lane_before(known, after)
    third = tl.where(counts[3], value[3], fourth)
    second = tl.where(counts[2], value[2], third)
    first = tl.where(counts[1], value[1], second)
    return (first, second, third, fourth), of_lane(known, LANES - 1)


@triton.jit
def _maps_of_steps(counts, reward, value, following, discount, decay):
    """Returns decays and biases of the STEPS: x ↦ δ + decay·x, or x where a step does not count."""
    decays, biases = (), ()
    for k in tl.static_range(STEPS):
        delta = tl.fma(following[k], discount, reward[k]) - value[k]
        decays += (tl.where(counts[k], decay, 1.0),)
        biases += (tl.where(counts[k], delta, 0.0),)
    return decays, biases


@triton.jit
def _store_row(out, begin, left, counts, value, swept, r: tl.constexpr):
    """Writes advantages and targets of a row; 0 where a step does not count."""
    advantage, target = (), ()
    for k in tl.static_range(STEPS):
        advantage += (tl.where(counts[k], swept[k], 0.0),)
        target += (tl.where(counts[k], swept[k] + value[k], 0.0),)
    step = steps_of_row(r)
    here, exists = begin + step, step < left
    tl.store(out.advantage + here, row_of(advantage), mask=exists)
    tl.store(out.target + here, row_of(target), mask=exists)


@kernel
def gae_kernel(
    steps, rates, bootstrap_ptr, out, maps, owners, T: tl.int64, sequences: tl.int64,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """One program per sequence, or per block, as _scan.py says.

    - reads the mask once; reward and value once, but not in lanes without a step that counts
    - writes advantage and target once; without them, the map of its block
    - never materialises δ or the value of the next counted step; from block to block go two scalars
    """
    program = tl.program_id(0)
    sequence, base, length, block, blocks = share(T, owners)
    discount, decay = rates.discount, rates.decay
    if rates.of_sequences is not None:  # (2, sequences)
        discount = tl.load(rates.of_sequences + sequence)
        decay = tl.load(rates.of_sequences + sequences + sequence)
    advantage_carry = tl.zeros((LANES,), tl.float32)
    value_carry = tl.zeros((LANES,), tl.float32)
    if bootstrap_ptr is not None:
        value_carry = in_every_lane(bootstrap_ptr + sequence)
    first, left_there = block_at(base, length, block, VECTOR)
    masks = _load_masks(steps.mask, first, tl.where(blocks > 0, left_there, 0))
    # Where a row's steps lie would otherwise stay in registers from block to block.
    for back in tl.range(0, blocks, disable_licm=True):
        begin, left = block_at(base, length, block - back, VECTOR)
        if out is None:
            value_carry = _value_from(
                steps.value, steps.mask, begin + BLOCK, base + length, value_carry
            )
            store_once(maps.callers + program, value_carry)
        elif maps is not None:
            advantage_carry = in_every_lane(maps.entering + program)
            value_carry = in_every_lane(maps.callers + program)
        counts, reward, value = (), (), ()
        for r in tl.static_range(ROWS):
            counts += (_counts_of(masks[r]),)
            value += (_load_counted(steps.value, begin, left, counts[r], r),)
            reward += (_load_counted(steps.reward, begin, left, counts[r], r),)
        # What the next block reads depends on its mask: that is on its way already.
        earlier, left_there = block_at(base, length, block - back - 1, VECTOR)
        masks = _load_masks(steps.mask, earlier, tl.where(back + 1 < blocks, left_there, 0))
        decays, biases = (), ()
        for r in tl.static_range(ROWS):
            following, value_carry = _following_values(counts[r], value[r], value_carry)
            maps_of_row = _maps_of_steps(counts[r], reward[r], value[r], following, discount, decay)
            decays += (maps_of_row[0],)
            biases += (maps_of_row[1],)
        swept, advantage_carry, far_decay, far_bias = scan_block(decays, biases, advantage_carry)
        if out is None:
            store_once(maps.decay + program, far_decay)
            store_once(maps.bias + program, far_bias)
        else:
            for r in tl.static_range(ROWS):
                _store_row(out, begin, left, counts[r], value[r], swept[r], r)


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
    steps, bootstrap = aligned(Steps(reward, value, mask.view(torch.uint8))), aligned(bootstrap)
    if coefficients.ndim == 2:
        both = torch.stack([coefficients[0], coefficients[0] * coefficients[1]])
        rates = Rates(0.0, 0.0, both.to(reward.dtype))
    else:
        discount, gae_lambda = coefficients.tolist()
        rates = Rates(discount, discount * gae_lambda, None)

    def launch(maps: Maps | None, sweeps: bool) -> None:
        gae_kernel[(planned.programs,)](
            steps, rates, bootstrap, out if sweeps else None, maps, planned.owners,
            reward.shape[-1], planned.sequences, VECTOR=planned.vector, num_warps=1,
            enable_fp_fusion=True,
        )  # fmt: skip

    if reward.numel():
        serve(planned, reward, launch)
    if ddof is None:
        return out.advantage, out.target
    return whiten(out.advantage, mask, ddof=ddof), out.target
