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
from rlkern.backends.triton._kept import (
    kept_length,
    kept_sums,
    launch_options,
    scratch_for,
    store_kept_gradient,
)
from rlkern.backends.triton._launch import aligned, kernel
from rlkern.backends.triton._rows import (
    open_row,
    row_start,
    row_strides,
    softmax_argument,
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
    """One program per row; grad may be the logits.

    - reads the row, its token's logit and the row's scalars; then, backwards, all but the row's
      last block again, from the cache as far as they are left there; of a row of weight 0 nothing
      but the weight
    - writes each element of the gradient once, the token's twice (nothing without one), and the
      row's statistics
    - never materialises log-probabilities, probabilities or a one-hot row
    """
    TILE: tl.constexpr = LAUNCH.tile
    layout = Layout(N, T, V, stride_b, stride_t, grad_stride_b, grad_stride_t)
    i = tl.program_id(0).to(tl.int64)
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
    keep, written = softmax.keep, logits if grad is None else grad
    arguments = (
        logits,
        aligned(TokenRows._make((token, *rows))),
        softmax_argument(softmax),
        formulas(objective),
        Out(statistics, grad, None if keep is None else scratch_for(keep)),
        *(B * T, T, V, *row_strides(logits), *row_strides(written)),
    )
    options = launch_options(logits, written)
    if keep is None:
        policy_loss_kernel[(B * T,)](*arguments, **options)
    else:
        kept_policy_loss_kernel[(B * T,)](*arguments, keep.shape[2], **options)
