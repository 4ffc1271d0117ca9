# SPDX-License-Identifier: Apache-2.0
"""The reverse scan x_t = bias_t + decay_t · x_{t+1}, padded or packed."""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._scan import WARPS, Maps, plan, scan_tile, serve, share, tile


class Steps(NamedTuple):
    """What is scanned."""

    bias: Tensor
    decay: Tensor


@kernel
def reverse_scan_kernel(
    steps, x_ptr, maps, owners, T: tl.int64, sequences: tl.int64, CHAINED: tl.constexpr
):
    """One program per tile of sequences, per sequence, or per block, as _scan.py says.

    - reads bias and decay once
    - writes x once; without x, the map of its block
    - never materialises products of decays; from block to block goes one scalar
    """
    _, base, length, block, blocks = share(T, sequences, owners, CHAINED)
    program = tl.program_id(0)
    carry = tl.zeros((), tl.float32)
    for back in range(0, blocks):
        begin, step, left = tile(base, length, block - back, CHAINED)
        bias = tl.load(steps.bias + begin + step, mask=step < left, other=0.0)
        decay = tl.load(steps.decay + begin + step, mask=step < left, other=1.0)
        if maps is not None and x_ptr is not None:
            carry = tl.load(maps.entering + program)
        x, carry, decay, bias = scan_tile(decay, bias, carry, CHAINED)
        if x_ptr is None:
            tl.store(maps.decay + program, decay)
            tl.store(maps.bias + program, bias)
        else:
            tl.store(x_ptr + begin + step, x, mask=step < left)


def reverse_scan(bias: Tensor, decay: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} in each sequence, and x = 0 after its end."""
    x = torch.empty_like(bias)
    planned = plan(bias, cu_seqlens)
    steps = aligned(Steps(bias, decay))

    def launch(maps: Maps | None, sweeps: bool) -> None:
        reverse_scan_kernel[(planned.programs,)](
            steps, x if sweeps else None, maps, planned.owners, bias.shape[-1], planned.sequences,
            CHAINED=planned.chained, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip

    if bias.numel():
        serve(planned, bias, launch)
    return x
