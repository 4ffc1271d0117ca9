# SPDX-License-Identifier: Apache-2.0
"""Sums over sequences, padded or packed, in float64 and in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


@triton.jit
def _bounds(offset_ptr, T):
    """Returns where this program's sequence begins and ends."""
    segment = tl.program_id(0).to(tl.int64)
    if offset_ptr is None:
        return segment * T, (segment + 1) * T
    else:
        return tl.load(offset_ptr + segment), tl.load(offset_ptr + segment + 1)


@triton.jit(
    do_not_specialize=["T"],
    do_not_specialize_on_alignment=["x_ptr", "mask_ptr", "offset_ptr", "total_ptr", "count_ptr"],
)
def segment_sum_kernel(
    x_ptr, mask_ptr, offset_ptr, total_ptr, count_ptr, T: tl.int64, BLOCK: tl.constexpr
):
    """One program per sequence; an element's lane is its place in the sequence, wherever that lies.

    - reads the mask, and x where it counts
    - writes one sum and one count per sequence
    - never materialises float64 copies of x
    """
    begin, end = _bounds(offset_ptr, T)
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        counted = tl.load(mask_ptr + at, mask=at < end, other=0) != 0
        total += tl.load(x_ptr + at, mask=counted, other=0.0).to(tl.float64)
        count += counted.to(tl.float32)
    segment = tl.program_id(0).to(tl.int64)
    tl.store(total_ptr + segment, tl.sum(total, 0).to(tl.float32))
    tl.store(count_ptr + segment, tl.sum(count, 0))


@triton.jit(
    do_not_specialize=["T"],
    do_not_specialize_on_alignment=["grad_ptr", "mask_ptr", "offset_ptr", "grad_x_ptr"],
)
def segment_sum_backward_kernel(
    grad_ptr, mask_ptr, offset_ptr, grad_x_ptr, T: tl.int64, BLOCK: tl.constexpr
):
    """One program per sequence.

    - reads the mask and one gradient per sequence
    - writes it to every element that counts, 0 to the others
    - never materialises sequence numbers
    """
    begin, end = _bounds(offset_ptr, T)
    grad = tl.load(grad_ptr + tl.program_id(0).to(tl.int64))
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        counted = tl.load(mask_ptr + at, mask=at < end, other=0) != 0
        tl.store(grad_x_ptr + at, tl.where(counted, grad, 0.0), mask=at < end)


def segment_sum(x: Tensor, mask: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns (sum, count) over the counted elements of each sequence."""
    segments = mask.shape[0] if offset is None else offset.numel() - 1
    total, count = x.new_empty(segments), x.new_empty(segments)
    if segments:
        with torch.cuda.device_of(x):
            segment_sum_kernel[(segments,)](
                x, mask, offset, total, count, x.numel() // segments, BLOCK=_BLOCK,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return total, count


def segment_sum_backward(grad: Tensor, mask: Tensor, offset: Tensor | None) -> Tensor:
    """Returns the gradient of every element."""
    grad_x = torch.empty(mask.shape, dtype=grad.dtype, device=grad.device)
    if mask.numel():
        with torch.cuda.device_of(grad):
            segment_sum_backward_kernel[(grad.numel(),)](
                grad, mask, offset, grad_x, mask.numel() // grad.numel(), BLOCK=_BLOCK,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return grad_x
