# SPDX-License-Identifier: Apache-2.0
"""The single-pass policy loss: statistics, objective and gradient of a row in one program."""

from collections import namedtuple
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.eager.token_objective import Objective, Rows
from rlkern.backends.triton._device import programs
from rlkern.backends.triton._kept import (
    kept_block_of,
    kept_length,
    kept_sums,
    scratch_for,
    store_kept_gradient,
)
from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._rows import (
    Tile,
    launch_shape,
    launch_tile,
    open_row,
    row_start,
    row_strides,
    softmax_argument,
    vector_width,
)
from rlkern.backends.triton._score import (
    formulas,
    loss_and_metrics,
    new_statistics,
    score_rows,
)
from rlkern.backends.triton._sweeps import (
    gradient_slopes,
    row_results,
    sweep_gradient,
    sweep_sums,
)

# The tokens, and the Rows of the reference.
TokenRows = namedtuple("TokenRows", ("token", *Rows._fields))  # type: ignore[misc]


class Out(NamedTuple):
    """What is written: the statistics of rows, the gradient if any, and room for kept logits."""

    statistics: Tensor
    grad: Tensor | None
    scratch: Tensor | None


class Layout(NamedTuple):
    """N = B·T rows of V columns, and where they begin: at b·stride_b + t·stride_t."""

    N: Any
    T: Any
    V: Any
    stride_b: Any
    stride_t: Any
    grad_stride_b: Any
    grad_stride_t: Any


class Launch(NamedTuple):
    """The constants of a compiled kernel: how a block lies in the threads, ids of a block."""

    tile: Tile
    kept_block: int
    persistent: bool


@triton.jit
def slopes_of_row(i, weight, row, softcap, sums, rows, objective, out, N):
    """Returns the Slopes of a row that has been summed; writes its statistics."""
    results = row_results(row, softcap, sums)
    d_logprob, d_entropy = score_rows(
        i, N, weight, results.logprob, results.entropy, rows, objective, out.statistics
    )
    top = tl.where(row.counted, sums.max, 0.0)
    return gradient_slopes(row, softcap, top, results, d_logprob, d_entropy, 0.0)


@triton.jit
def loss_of_row(i, logits_ptr, rows, softmax, objective, out, layout, TILE: tl.constexpr):
    """Writes the statistics and the gradient of row i."""
    softcap, V = softmax.softcap, layout.V
    weight = tl.load(rows.weight + i)
    row_ptr = row_start(logits_ptr, i, layout.T, layout.stride_b, layout.stride_t, TILE.vector)
    row = open_row(row_ptr, rows.token, softmax, i, weight != 0, V)
    # The last block stays in registers for the second sweep, which begins with it.
    x, sums = sweep_sums(row_ptr, row, softcap, V, False, TILE)
    slopes = slopes_of_row(i, weight, row, softcap, sums, rows, objective, out, layout.N)
    if out.grad is not None:
        grad_row = row_start(
            out.grad, i, layout.T, layout.grad_stride_b, layout.grad_stride_t, TILE.vector
        )
        sweep_gradient(grad_row, row_ptr, x, row, softcap, slopes, V, TILE)


@triton.jit
def loss_of_kept_row(i, logits_ptr, rows, softmax, objective, out, layout, K, LAUNCH: tl.constexpr):
    """Writes the statistics and the gradient of row i, which counts and keeps a set."""
    TILE: tl.constexpr = LAUNCH.tile
    KEPT_BLOCK: tl.constexpr = LAUNCH.kept_block
    softcap = softmax.softcap
    keep_row, scratch_row = softmax.keep + i * K, out.scratch + i * K
    row_ptr = row_start(logits_ptr, i, layout.T, layout.stride_b, layout.stride_t, TILE.vector)
    weight = tl.load(rows.weight + i)
    row = open_row(row_ptr, rows.token, softmax, i, weight != 0, layout.V)
    sums = kept_sums(row_ptr, keep_row, scratch_row, row, softcap, K, layout.V, False, KEPT_BLOCK)
    slopes = slopes_of_row(i, weight, row, softcap, sums, rows, objective, out, layout.N)
    if out.grad is not None:
        grad_row = row_start(
            out.grad, i, layout.T, layout.grad_stride_b, layout.grad_stride_t, TILE.vector
        )
        store_kept_gradient(
            grad_row, keep_row, scratch_row, row, softcap, slopes, K, layout.V, TILE, KEPT_BLOCK
        )


@kernel
def policy_loss_kernel(
    logits_ptr, rows, softmax, objective, out, N: tl.int64, T: tl.int64, V: tl.int32,
    stride_b: tl.int64, stride_t: tl.int64, grad_stride_b: tl.int64, grad_stride_t: tl.int64,
    LAUNCH: tl.constexpr,
):  # fmt: skip
    """One program per row, or persistent ones that take row after row; grad may be the logits.

    - reads the row, its token's logit and the row's scalars; then, backwards, all but the row's
      last block again, from the cache if there are no more programs than rows fit into it;
      of a row of weight 0 nothing but the weight
    - writes each element of the gradient once, the token's twice (nothing without one), and the
      row's statistics
    - never materialises log-probabilities, probabilities or a one-hot row
    """
    TILE: tl.constexpr = LAUNCH.tile
    layout = Layout(N, T, V, stride_b, stride_t, grad_stride_b, grad_stride_t)
    first = tl.program_id(0)
    end = N if LAUNCH.persistent else first + 1
    step = tl.num_programs(0) if LAUNCH.persistent else 1
    # What does not depend on the row would otherwise stay in registers from row to row.
    for i in tl.range(first, end, step, disable_licm=True):
        i = tl.cast(i, tl.int64)
        loss_of_row(i, logits_ptr, rows, softmax, objective, out, layout, TILE)


@kernel
def kept_policy_loss_kernel(
    logits_ptr, rows, softmax, objective, out, N: tl.int64, T: tl.int64, V: tl.int32,
    stride_b: tl.int64, stride_t: tl.int64, grad_stride_b: tl.int64, grad_stride_t: tl.int64,
    K: tl.int32, LAUNCH: tl.constexpr,
):  # fmt: skip
    """One program per row; grad may be the logits.

    - reads the ids of the row, their columns and its token's; a row that keeps everything, or does
      not count, is read as policy_loss_kernel reads it
    - writes zeros and over them the gradient of the kept columns, and the row's statistics
    - never materialises a mask of the vocabulary
    """
    TILE: tl.constexpr = LAUNCH.tile
    layout = Layout(N, T, V, stride_b, stride_t, grad_stride_b, grad_stride_t)
    i = tl.program_id(0).to(tl.int64)
    counted = tl.load(rows.weight + i) != 0
    kept = kept_length(softmax.keep + i * K, K, counted, LAUNCH.kept_block)
    if kept > 0:
        loss_of_kept_row(i, logits_ptr, rows, softmax, objective, out, layout, K, LAUNCH)
    else:
        loss_of_row(i, logits_ptr, rows, softmax, objective, out, layout, TILE)


def policy_loss(
    logits: Tensor,
    token: Tensor,
    rows: Rows,
    softmax: Softmax,
    objective: Objective,
    grad_logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics); writes the gradient into grad_logits (logits itself, too) if any.

    Of level token: a sequence's ratio is not known before its last row is read.
    """
    assert objective.level == "token"
    statistics = new_statistics(rows.weight)
    if token.numel():
        with torch.cuda.device_of(logits):
            _launch(logits, token, rows, softmax, objective, statistics, grad_logits)
    return loss_and_metrics(statistics, rows.weight)


def _launch(logits, token, rows, softmax, objective, statistics, grad):
    """Launches the kernel of whole rows or, if there are kept sets, that of these."""
    B, T, V = logits.shape
    shape = launch_shape(V)
    keep, written = softmax.keep, logits if grad is None else grad
    tile = launch_tile(V, logits, written)
    persistent = not tile.one_block and keep is None and grad is not None
    if persistent and tile.vector > 1:
        tile = tile._replace(stages=shape.stages)
    launch = Launch(tile, kept_block_of(shape.block), persistent)
    arguments = (
        logits,
        aligned(TokenRows._make((token, *rows))),
        softmax_argument(softmax),
        formulas(objective),
        Out(statistics, grad, None if keep is None else scratch_for(keep)),
        *(B * T, T, V, *row_strides(logits), *row_strides(written)),
    )
    options = {"LAUNCH": launch, "num_warps": shape.warps, "enable_fp_fusion": True}
    if keep is not None:
        kept_policy_loss_kernel[(B * T,)](*arguments, keep.shape[2], **options)
        return
    row_bytes = V * logits.element_size()
    grid = programs(B * T, row_bytes, shape.warps, logits.device) if persistent else B * T
    policy_loss_kernel[(grid,)](*arguments, **options)


@kernel
def scale_kernel(
    x_ptr, factor_ptr, T: tl.int64, V: tl.int32, stride_b: tl.int64, stride_t: tl.int64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row.

    - reads the factor, and the row unless the factor is exactly 1
    - writes the row unless the factor is exactly 1
    - never materialises a copy
    """
    factor = tl.load(factor_ptr).to(tl.float32)
    row_ptr = row_start(x_ptr, tl.program_id(0).to(tl.int64), T, stride_b, stride_t, VECTOR)
    length = tl.where(factor != 1.0, V // VECTOR, 0) * VECTOR
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + columns, mask=columns < length, other=0.0).to(tl.float32) * factor
        tl.store(row_ptr + columns, x.to(x_ptr.dtype.element_ty), mask=columns < length)


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor in place; a factor of exactly 1 touches nothing."""
    if not tensor.numel():
        return
    x = tensor if tensor.ndim == 3 else tensor.view(1, 1, -1)
    B, T, V = x.shape
    shape = launch_shape(V)
    options = {"VECTOR": vector_width(x), "BLOCK": shape.block, "num_warps": shape.warps}
    with torch.cuda.device_of(x):
        scale_kernel[(B * T,)](
            x, aligned(factor), T, V, *row_strides(x), **options, enable_fp_fusion=True
        )


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor in a buffer of its own: whether it is 1 only the device knows."""
    out = tensor.clone()
    scale_(out, factor)
    return out
