# SPDX-License-Identifier: Apache-2.0
"""The reverse scan x_t = bias_t + decay_t · x_{t+1}, padded or packed."""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._scan import (
    LANES,
    ROWS,
    Maps,
    block_at,
    in_every_lane,
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
    """What is scanned."""

    bias: Tensor
    decay: Tensor


@kernel
def reverse_scan_kernel(steps, x_ptr, maps, owners, T: tl.int64, VECTOR: tl.constexpr):
    """One program per sequence, or per block, as _scan.py says.

    - reads bias and decay once
    - writes x once; without x, the map of its block
    - never materialises products of decays; from block to block goes one scalar
    """
    _, base, length, block, blocks = share(T, owners)
    program = tl.program_id(0)
    carry = tl.zeros((LANES,), tl.float32)
    # Where a row's steps lie would otherwise stay in registers from block to block.
    for back in tl.range(0, blocks, disable_licm=True):
        begin, left = block_at(base, length, block - back, VECTOR)
        bias, decay = (), ()
        for r in tl.static_range(ROWS):
            step = steps_of_row(r)
            bias += (tl.load(steps.bias + begin + step, mask=step < left, other=0.0),)
            decay += (tl.load(steps.decay + begin + step, mask=step < left, other=1.0),)
        if maps is not None and x_ptr is not None:
            carry = in_every_lane(maps.entering + program)
        biases, decays = (), ()
        for r in tl.static_range(ROWS):
            biases += (steps_of(bias[r]),)
            decays += (steps_of(decay[r]),)
        swept, carry, block_decay, block_bias = scan_block(decays, biases, carry)
        if x_ptr is None:
            store_once(maps.decay + program, block_decay)
            store_once(maps.bias + program, block_bias)
        else:
            for r in tl.static_range(ROWS):
                step = steps_of_row(r)
                tl.store(x_ptr + begin + step, row_of(swept[r]), mask=step < left)


def reverse_scan(bias: Tensor, decay: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} in each sequence, and x = 0 after its end."""
    x = torch.empty_like(bias)
    planned = plan(bias, cu_seqlens)
    steps = aligned(Steps(bias, decay))

    def launch(maps: Maps | None, sweeps: bool) -> None:
        reverse_scan_kernel[(planned.programs,)](
            steps, x if sweeps else None, maps, planned.owners, bias.shape[-1],
            VECTOR=planned.vector, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip

    if bias.numel():
        serve(planned, bias, launch)
    return x
