# SPDX-License-Identifier: Apache-2.0
"""The single-pass policy loss: statistics, objective and gradient of a row in one program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.eager.token_objective import Objective, Rows
from rlkern.backends.triton._device import programs
from rlkern.backends.triton._kept import (
    kept_arguments,
    kept_length,
    kept_sums,
    scratch_for,
    store_kept_gradient,
)
from rlkern.backends.triton._rows import (
    absorb_block,
    absorb_row,
    empty_sums,
    gradient_scalars,
    launch_shape,
    load_block,
    load_token,
    row_length,
    row_offset,
    row_results,
    row_scalar,
    row_strides,
    store_gradient,
    temper,
    temper_slope,
    token_logit,
    vector_width,
)
from rlkern.backends.triton._score import (
    coefficients,
    formulas,
    loss_and_metrics,
    new_statistics,
    score_rows,
)

_RUN_TIME = ["N", "T", "V", "K", "stride_b", "stride_t", "grad_stride_b", "grad_stride_t"]
_ROWS = [
    "token_ptr", "advantage_ptr", "weight_ptr", "old_ptr", "ref_ptr", "correction_ptr",
    "scale_ptr", "keep_ptr", "scratch_ptr", "stats_ptr",
]  # fmt: skip


@triton.jit
def loss_of_row(
    row, logits_ptr, token_ptr, advantage_ptr, weight_ptr, old_ptr, ref_ptr, correction_ptr,
    scale_ptr, keep_ptr, scratch_ptr, stats_ptr, grad_ptr, N, T, V, K, softcap, coef,
    stride_b, stride_t, grad_stride_b, grad_stride_t,
    GATE: tl.constexpr, KL: tl.constexpr, CAPPED: tl.constexpr, ONE_BLOCK: tl.constexpr,
    STAGES: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr, KEPT_BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the statistics and the gradient of one row."""
    last = 0 if ONE_BLOCK else (tl.cdiv(V, BLOCK) - 1) * BLOCK
    last_columns = last + tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + row)
    counted = weight != 0
    token = load_token(token_ptr, row, counted, V)
    scale = row_scalar(scale_ptr, row, counted, 1.0)
    row_ptr = logits_ptr + row_offset(row, T, stride_b, stride_t, VECTOR)
    own_x = token_logit(row_ptr, token)
    own = temper(own_x, scale, softcap, CAPPED)
    length = row_length(counted, V, VECTOR)
    m, s, t, q = empty_sums()
    if keep_ptr is not None:
        keep_row = keep_ptr + row * K
        scratch_row = scratch_ptr + row * K
        kept = kept_length(keep_row, K, counted, KEPT_BLOCK)
        length = tl.where(kept > 0, 0, length)
        m, s, t, q = kept_sums(
            row_ptr, keep_row, kept, token, own, V, scale, softcap, scratch_row,
            CAPPED, False, KEPT_BLOCK,
        )  # fmt: skip
        tl.debug_barrier()  # every warp has the kept logits before any overwrites them
    if not ONE_BLOCK:
        m, s, t, q = absorb_row(
            row_ptr, tl.minimum(last, length), length, scale, softcap, m, s, t, q,
            CAPPED, False, STAGES, BLOCK,
        )  # fmt: skip
    # The last block stays in registers for the second sweep, which begins with it.
    x = load_block(row_ptr, last_columns, length)
    m, s, t, q = absorb_block(temper(x, scale, softcap, CAPPED), m, s, t, q, False)
    logprob, entropy, m, log_sum = row_results(own, m, s, t, counted)
    d_logprob, d_entropy = score_rows(
        row, counted, N, weight, logprob, entropy, advantage_ptr, old_ptr, ref_ptr,
        correction_ptr, stats_ptr, coef, GATE, KL,
    )  # fmt: skip
    if grad_ptr is not None:
        slope = temper_slope(own_x, softcap, CAPPED)
        a, b, own = gradient_scalars(
            logprob, entropy, log_sum, scale, slope, d_logprob, d_entropy, 0.0
        )
        grad_row = grad_ptr + row_offset(row, T, grad_stride_b, grad_stride_t, VECTOR)
        store_gradient(
            grad_row, last_columns, x, m, token, V, a, b, own, scale, softcap, CAPPED, VECTOR
        )
        if not ONE_BLOCK:
            for back in tl.range(0, last, BLOCK, num_stages=STAGES):
                columns = last - BLOCK - back + tl.arange(0, BLOCK)
                x = load_block(row_ptr, columns, length)
                store_gradient(
                    grad_row, columns, x, m, token, V, a, b, own, scale, softcap,
                    CAPPED, VECTOR,
                )  # fmt: skip
        if keep_ptr is not None:
            store_kept_gradient(
                grad_row, keep_row, kept, token, V, scratch_row, m, a, b, scale, softcap,
                CAPPED, KEPT_BLOCK,
            )  # fmt: skip


@triton.jit(do_not_specialize=_RUN_TIME, do_not_specialize_on_alignment=_ROWS)
def policy_loss_kernel(
    logits_ptr, token_ptr, advantage_ptr, weight_ptr, old_ptr, ref_ptr, correction_ptr, scale_ptr,
    keep_ptr, scratch_ptr, stats_ptr, grad_ptr,
    N: tl.int64, T: tl.int64, V: tl.int32, K: tl.int32, softcap: tl.float32, coef,
    stride_b: tl.int64, stride_t: tl.int64, grad_stride_b: tl.int64, grad_stride_t: tl.int64,
    GATE: tl.constexpr, KL: tl.constexpr, CAPPED: tl.constexpr, PERSISTENT: tl.constexpr,
    ONE_BLOCK: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr, KEPT_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row, or persistent ones that take row after row; grad_ptr may be logits_ptr.

    - reads the row, its token's logit and the row's scalars; then, backwards, all but the row's
      last block again, from the cache if there are no more programs than rows fit into it;
      of a kept set the ids and their columns, of a row of weight 0 nothing but the weight
    - writes each element of the gradient once (zeros under that of a kept set; nothing where
      grad_ptr is None), and the statistics of the row
    - never materialises log-probabilities, probabilities or a one-hot row
    """
    # A persistent program is alone on its multiprocessor: it must have several blocks on their way.
    # Each iteration of the second sweep writes its own columns only, so loads may run ahead.
    STAGES: tl.constexpr = 3 if PERSISTENT and VECTOR > 1 else 1
    first = tl.program_id(0)
    end = N if PERSISTENT else first + 1
    step = tl.num_programs(0) if PERSISTENT else 1
    # What does not depend on the row would otherwise stay in registers from row to row.
    for i in tl.range(first, end, step, disable_licm=True):
        loss_of_row(
            tl.cast(i, tl.int64), logits_ptr, token_ptr, advantage_ptr, weight_ptr, old_ptr,
            ref_ptr, correction_ptr, scale_ptr, keep_ptr, scratch_ptr, stats_ptr, grad_ptr,
            N, T, V, K, softcap, coef, stride_b, stride_t, grad_stride_b, grad_stride_t,
            GATE, KL, CAPPED, ONE_BLOCK, STAGES, VECTOR, BLOCK, KEPT_BLOCK,
        )  # fmt: skip


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
    B, T, V = logits.shape
    block, warps = launch_shape(V)
    out = logits if grad_logits is None else grad_logits
    keep, K, kept_block = kept_arguments(softmax, block)
    with torch.cuda.device_of(logits):
        if B * T:
            persistent = V > block and keep is None and grad_logits is not None
            row_bytes = V * logits.element_size()
            grid = programs(B * T, row_bytes, warps, logits.device) if persistent else B * T
            policy_loss_kernel[(grid,)](
                logits, token, *rows, softmax.inv_temperature, keep, scratch_for(softmax),
                statistics, grad_logits, B * T, T, V, K, float(softmax.softcap),
                coefficients(objective), *row_strides(logits), *row_strides(out),
                **formulas(objective), CAPPED=softmax.softcap != 0, PERSISTENT=persistent,
                ONE_BLOCK=V <= block, VECTOR=vector_width(logits, out), BLOCK=block,
                KEPT_BLOCK=kept_block, num_warps=warps, enable_fp_fusion=True,
            )  # fmt: skip
        return loss_and_metrics(statistics, rows.weight)


@triton.jit(
    do_not_specialize=["T", "V", "stride_b", "stride_t"],
    do_not_specialize_on_alignment=["factor_ptr"],
)
def scale_kernel(
    x_ptr, factor_ptr, T: tl.int64, V: tl.int32, stride_b: tl.int64, stride_t: tl.int64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row.

    - reads the factor, and the row unless the factor is exactly 1
    - writes the row unless the factor is exactly 1
    - never materialises a copy
    """
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factor_ptr).to(tl.float32)
    row_ptr = x_ptr + row_offset(row, T, stride_b, stride_t, VECTOR)
    length = row_length(factor != 1.0, V, VECTOR)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + columns, mask=columns < length, other=0.0).to(tl.float32) * factor
        tl.store(row_ptr + columns, x.to(x_ptr.dtype.element_ty), mask=columns < length)


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor in place; a factor of exactly 1 touches nothing."""
    if not tensor.numel():
        return
    x = tensor if tensor.ndim == 3 else tensor.view(1, 1, -1)
    block, warps = launch_shape(x.shape[2])
    with torch.cuda.device_of(x):
        scale_kernel[(x.shape[0] * x.shape[1],)](
            x, factor, x.shape[1], x.shape[2], *row_strides(x),
            VECTOR=vector_width(x), BLOCK=block, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor in a buffer of its own: whether it is 1 only the device knows."""
    out = tensor.clone()
    scale_(out, factor)
    return out
