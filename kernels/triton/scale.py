# SPDX-License-Identifier: Apache-2.0
"""A gradient times the scalar that arrives at the loss, in place or in a buffer of its own."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._rows import (
    launch_shape,
    row_start,
    row_strides,
    vector_width,
)

# 16 programs of 4 warps are as many threads as a multiprocessor holds. Their number is what a
# factor of 1 costs, which most losses have.
BLOCK, WARPS, PROGRAMS = 4096, 4, 16


@triton.jit
def whole_accesses(elements, VECTOR: tl.constexpr):
    """Returns the number as one that the compiler knows to be a multiple of the vector width."""
    return elements // VECTOR * VECTOR


@triton.jit
def scale_block(x_ptr, out_ptr, factor, length, BLOCK: tl.constexpr):
    """Writes BLOCK elements scaled, or `length` of them if given; over x where there is no out."""
    columns = tl.arange(0, BLOCK)
    inside = None if length is None else columns < length
    x = tl.load(x_ptr + columns, mask=inside).to(tl.float32) * factor
    to_ptr = x_ptr if out_ptr is None else out_ptr
    tl.store(to_ptr + columns, x.to(to_ptr.dtype.element_ty), mask=inside)


@kernel
def scale_kernel(
    x_ptr, out_ptr, factor_ptr, elements: tl.int64, VECTOR: tl.constexpr, BLOCK: tl.constexpr
):
    """Persistent programs that take block after block of a flat range.

    - reads the factor, and each element once
    - writes each element once
    - without out, where the factor is exactly 1: reads and writes no element
    """
    factor = tl.load(factor_ptr).to(tl.float32)
    end = whole_accesses(elements, VECTOR)
    if out_ptr is None:
        end = tl.where(factor != 1.0, end, 0)
    blocks, program = end // BLOCK, tl.program_id(0)
    for block in range(program, blocks, tl.num_programs(0)):
        begin = tl.cast(block, tl.int64) * BLOCK
        to_ptr = None if out_ptr is None else out_ptr + begin
        scale_block(x_ptr + begin, to_ptr, factor, None, BLOCK)
    # The mask of an odd number of elements makes accesses as narrow as one: in one block alone.
    if program == 0:
        begin = blocks * BLOCK
        to_ptr = None if out_ptr is None else out_ptr + begin
        scale_block(x_ptr + begin, to_ptr, factor, end - begin, BLOCK)


@kernel
def scale_rows_kernel(
    x_ptr, factor_ptr, T: tl.int64, V: tl.int32, stride_b: tl.int64, stride_t: tl.int64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row, in place.

    - reads the factor, and the row unless the factor is exactly 1
    - writes the row unless the factor is exactly 1
    - touches nothing between the rows
    """
    factor = tl.load(factor_ptr).to(tl.float32)
    row_ptr = row_start(x_ptr, tl.program_id(0).to(tl.int64), T, stride_b, stride_t, VECTOR)
    end = tl.where(factor != 1.0, whole_accesses(V, VECTOR), 0)
    for start in range(0, end, BLOCK):
        scale_block(row_ptr + start, None, factor, end - start, BLOCK)


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Returns how many multiprocessors a device has; those of an H100 where there is none.

    >>> multiprocessors(torch.device("cpu"))
    132
    """
    if device.index is None:  # interpreted, or compiled ahead of time
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def _launch_flat(x: Tensor, out: Tensor | None, factor: Tensor) -> None:
    elements = x.numel()
    flat = [y.view(1, 1, -1) for y in (x, out) if y is not None]
    grid = min(triton.cdiv(elements, BLOCK), PROGRAMS * multiprocessors(x.device))
    with torch.cuda.device_of(x):
        scale_kernel[(grid,)](
            x, out, aligned(factor), elements, VECTOR=vector_width(*flat), BLOCK=BLOCK,
            num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor in place; a factor of exactly 1 touches nothing.

    Of any shape where it is contiguous, else (B, T, V) with contiguous rows.
    """
    if not tensor.numel():
        return
    if tensor.is_contiguous():
        _launch_flat(tensor, None, factor)
        return
    B, T, V = tensor.shape
    shape = launch_shape(V, tensor.element_size())
    options = {"VECTOR": vector_width(tensor), "BLOCK": shape.block, "num_warps": shape.warps}
    with torch.cuda.device_of(tensor):
        scale_rows_kernel[(B * T,)](
            tensor, aligned(factor), T, V, *row_strides(tensor), **options, enable_fp_fusion=True
        )


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor in a buffer of its own: whether it is 1 only the device knows."""
    tensor = tensor.contiguous()
    out = torch.empty_like(tensor)
    if tensor.numel():
        _launch_flat(tensor, out, factor)
    return out
