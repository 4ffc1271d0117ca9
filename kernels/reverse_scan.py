# SPDX-License-Identifier: Apache-2.0
"""The reverse scan x_t = bias_t + decay_t · x_{t+1}."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# (largest T, steps per block, warps); longer rows carry from block to block.
_SHAPES = ((64, 64, 1), (1 << 62, 1024, 4))


@triton.jit
def _compose(near_decay, near_bias, far_decay, far_bias):
    """Returns the map x ↦ far(near(x)); a decay of 0 forgets x even where it is not finite."""
    forgets = far_decay == 0
    bias = tl.where(forgets, far_bias, far_decay * near_bias + far_bias)
    return tl.where(forgets, 0.0, near_decay * far_decay), bias


@triton.jit(
    do_not_specialize=["T"], do_not_specialize_on_alignment=["bias_ptr", "decay_ptr", "x_ptr"]
)
def reverse_scan_kernel(bias_ptr, decay_ptr, x_ptr, T: tl.int64, BLOCK: tl.constexpr):
    """One program per row, in blocks from its end; within them a forward scan of reversed time.

    - reads bias and decay once
    - writes x once
    - never materialises products of decays; from block to block goes one scalar
    """
    base = tl.program_id(0).to(tl.int64) * T
    carry = tl.zeros((), tl.float32)
    for start in range(0, T, BLOCK):
        step = tl.arange(0, BLOCK)
        t = T - 1 - start - step
        bias = tl.load(bias_ptr + base + t, mask=t >= 0, other=0.0)
        decay = tl.load(decay_ptr + base + t, mask=t >= 0, other=1.0)
        decay, bias = tl.associative_scan((decay, bias), 0, _compose)
        x = tl.where(decay == 0, bias, decay * carry + bias)
        tl.store(x_ptr + base + t, x, mask=t >= 0)
        carry = tl.sum(tl.where(step == BLOCK - 1, x, 0.0), 0)


def reverse_scan(bias: Tensor, decay: Tensor) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} along the last dimension, and x_T = 0."""
    x = torch.empty_like(bias)
    rows, length = bias.shape
    block, warps = next((b, w) for limit, b, w in _SHAPES if length <= limit)
    if bias.numel():
        with torch.cuda.device_of(bias):
            reverse_scan_kernel[(rows,)](
                bias, decay, x, length, BLOCK=block, num_warps=warps, enable_fp_fusion=True
            )
    return x
