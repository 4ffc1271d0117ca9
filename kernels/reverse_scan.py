# SPDX-License-Identifier: Apache-2.0
"""The reverse scan x_t = bias_t + decay_t · x_{t+1}, padded or packed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# (largest T, steps per block, warps); longer rows carry from block to block.
_SHAPES = ((64, 64, 1), (1 << 62, 1024, 4))


def launch_shape(x: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int, int]:
    """Returns (sequences, steps per block, warps); how long packed ones are is not known here."""
    if cu_seqlens is not None:
        return cu_seqlens.shape[0] - 1, *_SHAPES[-1][1:]
    return x.shape[0], *next((b, w) for limit, b, w in _SHAPES if x.shape[1] <= limit)


@triton.jit
def compose(near_decay, near_bias, far_decay, far_bias):
    """Returns the map x ↦ far(near(x)); a decay of 0 forgets x even where it is not finite."""
    forgets = far_decay == 0
    bias = tl.where(forgets, far_bias, far_decay * near_bias + far_bias)
    return tl.where(forgets, 0.0, near_decay * far_decay), bias


@triton.jit
def sequence_bounds(sequence, T, bounds_ptr):
    """Returns where a sequence begins and how many steps it has."""
    if bounds_ptr is None:
        return sequence.to(tl.int64) * T, T
    else:
        begin = tl.load(bounds_ptr + sequence)
        return begin, tl.load(bounds_ptr + sequence + 1) - begin


@triton.jit(
    do_not_specialize=["T"],
    do_not_specialize_on_alignment=["bias_ptr", "decay_ptr", "x_ptr", "bounds_ptr"],
)
def reverse_scan_kernel(bias_ptr, decay_ptr, x_ptr, bounds_ptr, T: tl.int64, BLOCK: tl.constexpr):
    """One program per sequence, in blocks from its end; in them a forward scan of reversed time.

    - reads bias and decay once
    - writes x once
    - never materialises products of decays; from block to block goes one scalar

    Blocks are counted from the beginning of a sequence: what pads its end changes no bit.
    """
    base, length = sequence_bounds(tl.program_id(0), T, bounds_ptr)
    carry = tl.zeros((), tl.float32)
    step = tl.arange(0, BLOCK)
    for back in range(0, length, BLOCK):
        t = (length - 1) // BLOCK * BLOCK - back + BLOCK - 1 - step
        bias = tl.load(bias_ptr + base + t, mask=t < length, other=0.0)
        decay = tl.load(decay_ptr + base + t, mask=t < length, other=1.0)
        decay, bias = tl.associative_scan((decay, bias), 0, compose)
        x = tl.where(decay == 0, bias, decay * carry + bias)
        tl.store(x_ptr + base + t, x, mask=t < length)
        carry = tl.sum(tl.where(step == BLOCK - 1, x, 0.0), 0)


def reverse_scan(bias: Tensor, decay: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} in each sequence, and x = 0 after its end."""
    x = torch.empty_like(bias)
    sequences, block, warps = launch_shape(bias, cu_seqlens)
    if bias.numel():
        with torch.cuda.device_of(bias):
            reverse_scan_kernel[(sequences,)](
                bias, decay, x, cu_seqlens, bias.shape[-1], BLOCK=block, num_warps=warps,
                enable_fp_fusion=True,
            )  # fmt: skip
    return x
