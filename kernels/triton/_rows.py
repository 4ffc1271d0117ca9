# SPDX-License-Identifier: Apache-2.0
"""What every kernel over the vocabulary shares: launch shapes, and where rows and blocks lie."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.triton._launch import aligned

# Measured on an H200 by `python -m benchmarks.gpu_shapes`: of 8192 × 151936 in bfloat16 they are
# within 2 % of the best for the log-prob and 12 % for the loss; of V = 32000, 12 % and the best.
# All operations have the same, so that a log-probability has the same bits in each of them.
WARPS, BYTES_OF_A_THREAD, LEAST_BLOCK = 8, 64, 128


class Shape(NamedTuple):
    """How rows are swept: columns of a block, warps of a program."""

    block: int
    warps: int


class Tile(NamedTuple):
    """How a block lies in the threads: (parts, lanes, vector), of which a thread has a lane."""

    parts: int
    lanes: int
    vector: int  # columns of an access
    one_block: bool


class Row(NamedTuple):
    """What is known of a row before it is swept; its token is −1 if it has none."""

    counted: Any
    token: Any
    logit: Any  # the token's
    inv_temperature: Any


def launch_shape(vocabulary: int, itemsize: int) -> Shape:
    """Returns how rows of this length are swept, of elements of so many bytes.

    A row that fits a block is read once and kept on chip, in the smallest program that takes it.

    >>> launch_shape(151936, 2), launch_shape(1000, 2), launch_shape(21, 4)
    (Shape(block=8192, warps=8), Shape(block=1024, warps=1), Shape(block=128, warps=1))
    """
    block, warps = 32 * WARPS * BYTES_OF_A_THREAD // itemsize, WARPS
    while block > LEAST_BLOCK and 2 * vocabulary <= block:
        block, warps = block // 2, max(1, warps // 2)
    return Shape(block, warps)


def launch_tile(shape: Shape, *tensors: Tensor) -> Tile:
    """Returns how a block of these tensors' rows lies in the threads.

    >>> import torch
    >>> x = torch.zeros(1, 1, 4096, dtype=torch.bfloat16)
    >>> launch_tile(launch_shape(4096, 2), x)
    Tile(parts=4, lanes=128, vector=8, one_block=True)
    """
    lanes = 32 * shape.warps
    each = shape.block // lanes
    vector = min(vector_width(*tensors), each)
    return Tile(each // vector, lanes, vector, tensors[0].shape[2] <= shape.block)


def row_strides(x: Tensor) -> tuple[int, int]:
    """Returns the strides of a (B, T, V) tensor's rows; 0 for a dimension of 1 (any would do)."""
    return tuple(0 if x.shape[i] == 1 else x.stride(i) for i in (0, 1))  # type: ignore[return-value]


def vector_width(*tensors: Tensor) -> int:
    """Returns the elements in 16 bytes if all rows begin and end at a multiple of that, else 1.

    The compiler cannot know it of run-time arguments; without it each access is one element wide.
    Nor does it believe it of a tensor that begins elsewhere: it would then spread a vector over
    several threads, whose sums of a row differ.

    >>> import torch
    >>> x = torch.zeros(1, 2, 72, dtype=torch.bfloat16)
    >>> vector_width(x[..., 8:]), vector_width(x[..., 1:65]), vector_width(x[..., :65])
    (8, 1, 1)
    """
    width = max(16 // x.element_size() for x in tensors)
    if any(x.data_ptr() % 16 for x in tensors):
        return 1
    numbers = [n for x in tensors for n in (x.shape[2], *row_strides(x))]
    return width if all(n % width == 0 for n in numbers) else 1


def softmax_argument(softmax: Softmax) -> Softmax:
    """Returns the softmax as kernels take it: without a softcap, None makes the tanh vanish."""
    softcap = float(softmax.softcap) or None
    return aligned(Softmax(softmax.inv_temperature, softcap, softmax.keep))  # type: ignore[arg-type]


@triton.jit
def row_start(ptr, row, T, stride_b, stride_t, VECTOR: tl.constexpr):
    """Returns where a row begins: 64 bits, since N·V passes 2³¹."""
    return ptr + tl.multiple_of((row // T) * stride_b + (row % T) * stride_t, VECTOR)


@triton.jit
def counted_row(flag_ptr, row):
    """Returns whether a row counts; without flags (a mask or weights) every row does."""
    if flag_ptr is None:
        return row >= 0
    else:
        return tl.load(flag_ptr + row) != 0


@triton.jit
def row_scalar(ptr, row, counted, absent):
    """Returns the row's entry of a vector that may be missing; unread where it does not count."""
    if ptr is None:
        return absent
    else:
        return tl.load(ptr + row, mask=counted, other=absent)


@triton.jit
def open_row(row_ptr, token_ptr, softmax, row, counted, V):
    """Returns the Row; its logit is NaN, not foreign memory, for a token outside the vocabulary."""
    token = tl.load(token_ptr + row, mask=counted, other=-1)
    token = tl.where((token >= 0) & (token < V), token, -1)
    inv_temperature = row_scalar(softmax.inv_temperature, row, counted, 1.0)
    logit = tl.load(row_ptr + tl.maximum(token, 0), mask=token >= 0, other=float("nan"))
    # Every warp reads the logit, and the one whose column it is overwrites it with the gradient:
    # Triton orders no load of one warp before a store of another.
    tl.debug_barrier()
    return Row(counted, token, logit.to(tl.float32), inv_temperature)


@triton.jit
def vector_columns(TILE: tl.constexpr):
    """Returns the first column of each vector of a block."""
    part = tl.arange(0, TILE.parts)[:, None, None] * TILE.lanes
    return (part + tl.arange(0, TILE.lanes)[None, :, None]) * TILE.vector


@triton.jit
def tile_columns(TILE: tl.constexpr):
    """Returns the columns of a block, a tile."""
    columns = vector_columns(TILE) + tl.arange(0, TILE.vector)[None, None, :]
    if TILE.vector > 1:
        VECTOR: tl.constexpr = TILE.vector
        # Orders the axes, no more: threads lie along the vector, then along the lanes. Triton 3.6
        # would lay them along the parts, and sum what a lane has by shuffles.
        columns = tl.max_contiguous(columns, (1, 2, VECTOR))
    return columns


@triton.jit
def last_block(V, TILE: tl.constexpr):
    """Returns where the last block of a row begins; it is never empty, and all others are full."""
    BLOCK: tl.constexpr = TILE.parts * TILE.lanes * TILE.vector
    return 0 if TILE.one_block else (tl.cdiv(V, BLOCK) - 1) * BLOCK


@triton.jit
def load_last(row_ptr, row, V, TILE: tl.constexpr):
    """Returns float32 logits of the last block; −inf, of probability 0, beyond the row.

    Of a row that does not count nothing is read.
    """
    columns = last_block(V, TILE) + tile_columns(TILE)
    # So the compiler knows the length to be a multiple of the vector width.
    length = tl.where(row.counted, V // TILE.vector, 0) * TILE.vector
    return tl.load(row_ptr + columns, mask=columns < length, other=float("-inf")).to(tl.float32)
