# SPDX-License-Identifier: Apache-2.0
"""What the scans share: maps x ↦ decay·x + bias composed over blocks of steps, and who takes which.

A program is one warp. A lane holds STEPS consecutive steps, a row is what the lanes hold, later
steps in earlier lanes, and a block is ROWS rows. Whatever the form, steps are composed within a
lane, then lane by lane in a row, then row by row in a block, all counted from the sequence's
beginning, then block by block: neither the batch nor the form that serves it changes a bit.

- whole   a program takes a sequence, block by block from its end
- parts   few and long sequences: a program takes a block, twice. First it writes the block's map,
          from which carry_kernel has what enters each block; then it sweeps the block.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.triton._launch import aligned

LANES = tl.constexpr(32)
STEPS = tl.constexpr(4)
ROWS = tl.constexpr(2)
SPAN = tl.constexpr(32 * 4)
BLOCK = tl.constexpr(2 * 32 * 4)
# Derived, not measured: 1024 programs with a block each in flight ask for half of what a GPU of
# 4.8 TB/s needs to be busy, and three launches cost as much as some 16 blocks one by one.
LONG, FEW = 16 * 256, 1024


@triton.jit
def apply(decay, bias, x):
    """Returns decay·x + bias; a decay of 0 forgets x even where it is not finite."""
    return tl.where(decay == 0, bias, tl.fma(decay, x, bias))


@triton.jit
def compose(near_decay, near_bias, far_decay, far_bias):
    """Returns the map x ↦ far(near(x))."""
    forgets = far_decay == 0  # written out: the interpreter takes long to call a function
    bias = tl.where(forgets, far_bias, tl.fma(far_decay, near_bias, far_bias))
    return tl.where(forgets, 0.0, near_decay * far_decay), bias


@triton.jit
def steps_of(x):
    """Returns the STEPS tensors (LANES,) of a row (LANES, STEPS): each lane has its own."""
    even, odd = tl.split(tl.reshape(x, (LANES, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def row_of(steps):
    """Returns the row (LANES, STEPS) of its steps."""
    even, odd = tl.join(steps[0], steps[2]), tl.join(steps[1], steps[3])
    return tl.reshape(tl.join(even, odd), (LANES, STEPS))


@triton.jit
def of_lane(x, lane):
    """Returns what one lane has, in every lane."""
    return tl.gather(x, lane + tl.zeros((LANES,), tl.int32), 0)


@triton.jit
def lane_before(x, first):
    """Returns what the lane before has, which holds the steps that follow; `first` in lane 0."""
    lane = tl.arange(0, LANES)
    return tl.where(lane == 0, first, tl.gather(x, tl.maximum(lane - 1, 0), 0))


@triton.jit
def scan_row(decay, bias):
    """Returns the map (decay, bias) of each lane after those before it, given STEPS of each."""
    far_decay, far_bias = decay[STEPS - 1], bias[STEPS - 1]
    for step in tl.static_range(STEPS - 2, -1, -1):
        far_decay, far_bias = compose(far_decay, far_bias, decay[step], bias[step])
    return tl.associative_scan((far_decay, far_bias), 0, compose)


@triton.jit
def sweep_row(decay, bias, row_map, entered):
    """Returns x at each of the STEPS of each lane, given what entered the row."""
    following = lane_before(apply(row_map[0], row_map[1], entered), entered)
    third = apply(decay[3], bias[3], following)
    second = apply(decay[2], bias[2], third)
    first = apply(decay[1], bias[1], second)
    return apply(decay[0], bias[0], first), first, second, third


@triton.jit
def scan_block(decay, bias, carry):
    """Returns x at each step of each row, x at the block's begin, and the block's map.

    decay and bias are tuples of ROWS tuples of STEPS; carry is what enters, in every lane.
    """
    maps = ()
    for r in tl.static_range(ROWS):
        maps += (scan_row(decay[r], bias[r]),)
    entered, swept = carry, ()
    far_decay, far_bias = of_lane(maps[0][0], LANES - 1), of_lane(maps[0][1], LANES - 1)
    for r in tl.static_range(ROWS):
        swept += (sweep_row(decay[r], bias[r], maps[r], entered),)
        if r > 0:
            row_decay, row_bias = of_lane(maps[r][0], LANES - 1), of_lane(maps[r][1], LANES - 1)
            far_decay, far_bias = compose(far_decay, far_bias, row_decay, row_bias)
        entered = apply(far_decay, far_bias, carry)
    return swept, entered, far_decay, far_bias


@triton.jit
def block_at(base, length, block, VECTOR: tl.constexpr):
    """Returns where a block begins, and how many steps there are from there, at most BLOCK."""
    begin = tl.cast(block, tl.int64) * BLOCK
    left = tl.minimum(length - begin, BLOCK).to(tl.int32)
    # Both are multiples of VECTOR, so that a lane's steps are one access.
    return tl.multiple_of(base + begin, VECTOR), tl.multiple_of(left, VECTOR)


@triton.jit
def steps_of_row(r: tl.constexpr):
    """Returns the steps (LANES, STEPS) of a row, counted from the block's beginning.

    In int32: offsets that stay in registers.
    """
    lane, step = tl.arange(0, LANES)[:, None], tl.arange(0, STEPS)[None, :]
    return (BLOCK - SPAN * (r + 1)) + (LANES - 1 - lane) * STEPS + step


@triton.jit
def in_every_lane(pointer):
    """Returns what is at an address, in every lane."""
    return tl.load(pointer + 0 * tl.arange(0, LANES))


@triton.jit
def store_once(pointer, x):
    """Writes what every lane has."""
    lane = tl.arange(0, LANES)
    tl.store(pointer + 0 * lane, x, mask=lane == 0)


@triton.jit
def sequence_bounds(sequence, T, bounds_ptr):
    """Returns where a sequence begins and how many steps it has; T of them without bounds."""
    if bounds_ptr is None:
        return sequence.to(tl.int64) * T, T
    else:
        begin = tl.load(bounds_ptr + sequence).to(tl.int64)
        return begin, tl.load(bounds_ptr + sequence + 1) - begin


@triton.jit
def share(T, owners):
    """Returns a program's (sequence, base, length), its last block and how many blocks it has."""
    program = tl.program_id(0)
    if owners.owner is None:
        base, length = sequence_bounds(program, T, owners.bounds)
        blocks = tl.cdiv(length, BLOCK)
        return program, base, length, blocks - 1, blocks
    else:
        sequence = tl.load(owners.owner + program)
        base, length = sequence_bounds(sequence, T, owners.bounds)
        block = program - base // BLOCK - sequence
        return sequence, base, length, block, (block * BLOCK < length).to(tl.int32)


@triton.jit
def carry_kernel(maps, bounds_ptr):
    """One program per sequence, over the maps of its blocks, from the last.

    - reads decay and bias of every block once
    - writes what enters every block once
    """
    sequence = tl.program_id(0)
    base, length = sequence_bounds(sequence, 0, bounds_ptr)
    blocks = tl.cdiv(length, BLOCK)
    lane = tl.arange(0, LANES)
    carry = tl.zeros((LANES,), tl.float32)
    for back in range(0, blocks, SPAN):
        last = base // BLOCK + sequence + blocks - 1 - back
        decay, bias = (), ()
        # No store comes between the loads, so that they need not wait for one another.
        for k in tl.static_range(STEPS):
            exists = back + k * LANES + lane < blocks
            decay += (tl.load(maps.decay + last - k * LANES - lane, mask=exists, other=1.0),)
            bias += (tl.load(maps.bias + last - k * LANES - lane, mask=exists, other=0.0),)
        for k in tl.static_range(STEPS):
            entering = tl.zeros((LANES,), tl.float32)
            for block in range(0, LANES):
                entering = tl.where(lane == block, carry, entering)
                carry = apply(of_lane(decay[k], block), of_lane(bias[k], block), carry)
            exists = back + k * LANES + lane < blocks
            tl.store(maps.entering + last - k * LANES - lane, entering, mask=exists)


class Maps(NamedTuple):
    """What is known of each block: its map, what enters it, and a number of the caller's."""

    decay: Tensor
    bias: Tensor
    entering: Tensor
    callers: Tensor


class Owners(NamedTuple):
    """Where sequences begin and, in the form of parts, which of them each block belongs to."""

    bounds: Tensor | None = None
    owner: Tensor | None = None


class Plan(NamedTuple):
    """How a batch is served: by how many programs, with accesses of how many steps."""

    programs: int
    sequences: int
    vector: int
    owners: Owners = Owners()


def plan(x: Tensor, cu_seqlens: Tensor | None) -> Plan:
    """Returns how the sequences of x are served; how long packed ones are is not known here."""
    if cu_seqlens is None:
        sequences, length = x.shape
        vector = 1 if length % STEPS.value else STEPS.value
    else:
        sequences, vector = cu_seqlens.shape[0] - 1, 1
        # The longest may have all steps; where blocks are not full, one is not worth two reads.
        length = x.shape[0] if x.shape[0] >= sequences * BLOCK.value else 0
    if length <= LONG or sequences >= FEW:
        return Plan(sequences, sequences, vector, aligned(Owners(cu_seqlens)))
    steps, device = x.numel(), x.device
    bounds = cu_seqlens
    if bounds is None:
        bounds = torch.arange(0, steps + 1, length, device=device)
    # Room for every block of every sequence, found from where it begins.
    slots = steps // BLOCK.value + sequences
    first = bounds[:-1] // BLOCK.value + torch.arange(sequences, device=device)
    owner = torch.searchsorted(first, torch.arange(slots, device=device), right=True) - 1
    return Plan(slots, sequences, vector, aligned(Owners(bounds, owner)))


def serve(planned: Plan, x: Tensor, launch: Callable[[Maps | None, bool], None]) -> None:
    """Calls launch(maps, sweeps): once without maps, in parts to make and to use them."""
    with torch.cuda.device_of(x):
        if planned.owners.owner is None:
            launch(None, True)
            return
        maps = Maps(*(x.new_empty(planned.programs) for _ in Maps._fields))
        launch(maps, False)
        bounds = planned.owners.bounds
        carry_kernel[(planned.sequences,)](maps, bounds, num_warps=1, enable_fp_fusion=True)
        launch(maps, True)
