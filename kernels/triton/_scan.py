# SPDX-License-Identifier: Apache-2.0
"""What the scans share: maps x ↦ decay·x + bias composed over tiles of steps, and who takes which.

A tile is (ROWS, SPAN) steps, time reversed along its rows. Whatever the form, steps are composed
within a row of SPAN first, counted from the sequence's beginning, then row by row in blocks of ROWS
rows, then block by block: neither the batch nor the form that serves it changes a bit.

- short   no row of the batch is longer than SPAN: a program takes ROWS sequences
- middle  a program takes a sequence, block by block from its end
- long    few and long sequences: a program takes a block, twice. First it writes the block's map,
          from which carry_kernel has what enters each block; then it sweeps the block.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.triton._launch import aligned

ROWS = tl.constexpr(16)
SPAN = tl.constexpr(64)
BLOCK = tl.constexpr(16 * 64)
UNROLL = tl.constexpr(16)
WARPS = 8  # with 4, 8 steps a thread: half as many warps fit beside one another
# Derived, not measured: 256 programs with a block each in flight ask for half of what a GPU of
# 4.8 TB/s needs to be busy, and three launches cost as much as some 16 blocks one by one.
LONG, FEW = 16 * 1024, 256


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
def scan_tile(decay, bias, carry, CHAINED: tl.constexpr):
    """Returns x over a tile and, if its rows are one chain, (x at its begin, decay, bias) of it.

    carry is what enters the first row of a chain, or each row of its own.
    """
    decay, bias = tl.associative_scan((decay, bias), 1, compose)
    if CHAINED:
        row = tl.arange(0, ROWS)
        ends = tl.arange(0, SPAN)[None, :] == SPAN - 1
        far_decay = tl.sum(tl.where(ends, decay, 0.0), 1)
        far_bias = tl.sum(tl.where(ends, bias, 0.0), 1)
        far_decay, far_bias = tl.associative_scan((far_decay, far_bias), 0, compose)
        left = apply(far_decay, far_bias, carry)
        entered = tl.sum(tl.where(row[:, None] == row[None, :] + 1, left[None, :], 0.0), 1)
        entered = tl.where(row == 0, carry, entered)
        x = apply(decay, bias, entered[:, None])
        carry = tl.sum(tl.where(row == ROWS - 1, left, 0.0), 0)
        far_decay = tl.sum(tl.where(row == ROWS - 1, far_decay, 0.0), 0)
        return x, carry, far_decay, tl.sum(tl.where(row == ROWS - 1, far_bias, 0.0), 0)
    else:
        return apply(decay, bias, carry), carry, 0.0, 0.0


@triton.jit
def tile(base, length, block, CHAINED: tl.constexpr):
    """Returns where a block begins, its steps (ROWS, SPAN), and the steps left, of it and one more.

    Steps are counted from its beginning, in int32: offsets that stay in registers.
    """
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, SPAN)[None, :]
    begin = tl.cast(block, tl.int64) * BLOCK
    left = tl.minimum(length - begin, BLOCK + 1).to(tl.int32)
    if CHAINED:
        return base + begin, BLOCK - 1 - row * SPAN - column, left
    else:
        return base + begin, SPAN - 1 - 0 * row - column, left


@triton.jit
def sequence_bounds(sequence, T, bounds_ptr):
    """Returns where a sequence begins and how many steps it has; T of them without bounds."""
    if bounds_ptr is None:
        return sequence.to(tl.int64) * T, T
    else:
        begin = tl.load(bounds_ptr + sequence).to(tl.int64)
        return begin, tl.load(bounds_ptr + sequence + 1) - begin


@triton.jit
def share(T, sequences, owners, CHAINED: tl.constexpr):
    """Returns a program's (sequence, base, length), its last block and how many blocks it has."""
    program = tl.program_id(0)
    if not CHAINED:
        sequence = program * ROWS + tl.arange(0, ROWS)[:, None]
        length = tl.where(sequence < sequences, T, 0)
        return sequence, sequence.to(tl.int64) * T, length, 0, 1
    elif owners.owner is None:
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
    lane = tl.arange(0, UNROLL)
    carry = tl.zeros((), tl.float32)
    for back in range(0, blocks, UNROLL):
        last = base // BLOCK + sequence + blocks - 1 - back
        entering = tl.zeros((UNROLL,), tl.float32)
        # No store comes between the loads, so that they need not wait for one another.
        for k in tl.static_range(UNROLL):
            entering = tl.where(lane == k, carry, entering)
            decay = tl.load(maps.decay + last - k, mask=back + k < blocks, other=1.0)
            bias = tl.load(maps.bias + last - k, mask=back + k < blocks, other=0.0)
            carry = apply(decay, bias, carry)
        tl.store(maps.entering + last - lane, entering, mask=back + lane < blocks)


class Maps(NamedTuple):
    """What the long form knows of each block: its map, what enters it, a number of the caller's."""

    decay: Tensor
    bias: Tensor
    entering: Tensor
    callers: Tensor


class Owners(NamedTuple):
    """Where sequences begin and, in the long form, which of them each block belongs to."""

    bounds: Tensor | None = None
    owner: Tensor | None = None


class Plan(NamedTuple):
    """How a batch is served: by how many programs, of what form."""

    programs: int
    sequences: int
    chained: bool
    owners: Owners = Owners()


def plan(x: Tensor, cu_seqlens: Tensor | None) -> Plan:
    """Returns how the sequences of x are served; how long packed ones are is not known here."""
    if cu_seqlens is None:
        sequences, length = x.shape
        if length <= SPAN.value:
            return Plan(triton.cdiv(sequences, ROWS.value), sequences, False)
    else:
        sequences = cu_seqlens.shape[0] - 1
        # The longest may have all steps; where blocks are not full, one is not worth two reads.
        length = x.shape[0] if x.shape[0] >= sequences * BLOCK.value else 0
    if length <= LONG or sequences >= FEW:
        return Plan(sequences, sequences, True, aligned(Owners(cu_seqlens)))
    steps, device = x.numel(), x.device
    bounds = cu_seqlens
    if bounds is None:
        bounds = torch.arange(0, steps + 1, length, device=device)
    # Room for every block of every sequence, found from where it begins.
    slots = steps // BLOCK.value + sequences
    first = bounds[:-1] // BLOCK.value + torch.arange(sequences, device=device)
    owner = torch.searchsorted(first, torch.arange(slots, device=device), right=True) - 1
    return Plan(slots, sequences, True, aligned(Owners(bounds, owner)))


def serve(planned: Plan, x: Tensor, launch: Callable[[Maps | None, bool], None]) -> None:
    """Calls launch(maps, sweeps): once without maps, in the long form to make and to use them."""
    with torch.cuda.device_of(x):
        if planned.owners.owner is None:
            launch(None, True)
            return
        maps = Maps(*(x.new_empty(planned.programs) for _ in Maps._fields))
        launch(maps, False)
        bounds = planned.owners.bounds
        carry_kernel[(planned.sequences,)](maps, bounds, num_warps=1, enable_fp_fusion=True)
        launch(maps, True)
