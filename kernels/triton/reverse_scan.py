# SPDX-License-Identifier: Apache-2.0
"""The reverse scan x_t = bias_t + decay_t · x_{t+1}, padded or packed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.triton._scan import WARPS, plan, scan_tile, serve, share, tile


@triton.jit(
    do_not_specialize=["T", "sequences"],
    do_not_specialize_on_alignment=[
        "bias_ptr", "decay_ptr", "x_ptr", "bounds_ptr", "owner_ptr", "map_ptr",
    ],
)  # fmt: skip
def reverse_scan_kernel(
    bias_ptr, decay_ptr, x_ptr, bounds_ptr, owner_ptr, map_ptr, T: tl.int64, sequences: tl.int64,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One program per tile of sequences, per sequence, or per block, as _scan.py says.

    - reads bias and decay once
    - writes x once; without x, the map of its block
    - never materialises products of decays; from block to block goes one scalar
    """
    _, base, length, block, blocks = share(T, sequences, bounds_ptr, owner_ptr, CHAINED)
    carry = tl.zeros((), tl.float32)
    for back in range(0, blocks):
        begin, step, left = tile(base, length, block - back, CHAINED)
        bias = tl.load(bias_ptr + begin + step, mask=step < left, other=0.0)
        decay = tl.load(decay_ptr + begin + step, mask=step < left, other=1.0)
        if map_ptr is not None and x_ptr is not None:
            carry = tl.load(map_ptr + 2 * tl.num_programs(0) + tl.program_id(0))
        x, carry, decay, bias = scan_tile(decay, bias, carry, CHAINED)
        if x_ptr is None:
            tl.store(map_ptr + tl.program_id(0), decay)
            tl.store(map_ptr + tl.num_programs(0) + tl.program_id(0), bias)
        else:
            tl.store(x_ptr + begin + step, x, mask=step < left)


def reverse_scan(bias: Tensor, decay: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} in each sequence, and x = 0 after its end."""
    x = torch.empty_like(bias)
    planned = plan(bias, cu_seqlens)

    def launch(maps: Tensor | None, sweeps: bool) -> None:
        reverse_scan_kernel[(planned.programs,)](
            bias, decay, x if sweeps else None, planned.bounds, planned.owner, maps,
            bias.shape[-1], planned.sequences, CHAINED=planned.chained, num_warps=WARPS,
            enable_fp_fusion=True,
        )  # fmt: skip

    if bias.numel():
        serve(planned, bias, launch)
    return x
