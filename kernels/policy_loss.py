# SPDX-License-Identifier: Apache-2.0
"""The single-pass policy loss: statistics, objective and gradient of a row in one program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.kernels._math import GATES, KL_ESTIMATORS
from rlkern.kernels._rows import (
    absorb_block,
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
    row_sums,
    store_gradient,
    token_logit,
    vector_width,
)
from rlkern.kernels._score import loss_and_metrics, new_statistics, score_tokens
from rlkern.reference.token_objective import Objective

_RUN_TIME = ["N", "T", "V", "stride_b", "stride_t", "grad_stride_b", "grad_stride_t"]
_ROWS = ["token_ptr", "advantage_ptr", "weight_ptr", "old_ptr", "ref_ptr", "scale_ptr", "stats_ptr"]


@triton.jit(do_not_specialize=_RUN_TIME, do_not_specialize_on_alignment=_ROWS)
def policy_loss_kernel(
    logits_ptr, token_ptr, advantage_ptr, weight_ptr, old_ptr, ref_ptr, scale_ptr,
    stats_ptr, grad_ptr, N: tl.int64, T: tl.int64, V: tl.int32,
    stride_b: tl.int64, stride_t: tl.int64, grad_stride_b: tl.int64, grad_stride_t: tl.int64,
    c0: tl.float32, c1: tl.float32, kl_coef: tl.float32, entropy_coef: tl.float32,
    GATE: tl.constexpr, KL: tl.constexpr,
    ONE_BLOCK: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row; grad_ptr may be logits_ptr, or None where only the loss is wanted.

    - reads the row twice (once if it fits one block), its token's logit, and the row's scalars;
      of a row of weight 0 nothing but the weight
    - writes each element of the gradient once, and eight statistics per row
    - never materialises log-probabilities, probabilities or a one-hot row
    """
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(weight_ptr + row)
    counted = weight != 0
    token = load_token(token_ptr, row, counted, V)
    advantage = tl.load(advantage_ptr + row, mask=counted, other=0.0)
    old = row_scalar(old_ptr, row, counted, 0.0)
    ref = row_scalar(ref_ptr, row, counted, 0.0)
    scale = row_scalar(scale_ptr, row, counted, 1.0)
    row_ptr = logits_ptr + row_offset(row, T, stride_b, stride_t, VECTOR)
    length = row_length(counted, V, VECTOR)
    own = token_logit(row_ptr, token, scale)
    if ONE_BLOCK:
        z = load_block(row_ptr, tl.arange(0, BLOCK), length, scale)
        m, s, t = absorb_block(z, *empty_sums())
    else:
        m, s, t = row_sums(row_ptr, length, scale, BLOCK)
    logprob, entropy, m, log_sum = row_results(own, m, s, t, counted)
    d_logprob, d_entropy = score_tokens(
        row, row < N, N, weight, logprob, entropy, advantage, old, ref, stats_ptr,
        c0, c1, kl_coef, entropy_coef, GATE, KL, old_ptr is not None, ref_ptr is not None,
    )  # fmt: skip
    if grad_ptr is not None:
        a, b, own = gradient_scalars(logprob, entropy, log_sum, scale, d_logprob, d_entropy, 0.0)
        grad_row = grad_ptr + row_offset(row, T, grad_stride_b, grad_stride_t, VECTOR)
        if ONE_BLOCK:
            store_gradient(grad_row, tl.arange(0, BLOCK), z, m, token, V, a, b, own, VECTOR)
        else:
            # Backwards: the end of the row, read last, is the likeliest to be in the cache.
            blocks = tl.cdiv(V, BLOCK)
            for i in range(0, blocks):
                columns = (blocks - 1 - i) * BLOCK + tl.arange(0, BLOCK)
                z = load_block(row_ptr, columns, length, scale)
                store_gradient(grad_row, columns, z, m, token, V, a, b, own, VECTOR)


def policy_loss(
    logits: Tensor,
    token: Tensor,
    advantage: Tensor,
    weight: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    inv_temperature: Tensor | None,
    objective: Objective,
    grad_logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics); writes the gradient into grad_logits (logits itself, too) if any."""
    statistics = new_statistics(weight)
    B, T, V = logits.shape
    block, warps = launch_shape(V)
    out = logits if grad_logits is None else grad_logits
    with torch.cuda.device_of(logits):
        if B * T:
            policy_loss_kernel[(B * T,)](
                logits, token, advantage, weight, old_logprob, ref_logprob, inv_temperature,
                statistics, grad_logits, B * T, T, V, *row_strides(logits), *row_strides(out),
                *objective.gate_coef, objective.kl_coef, objective.entropy_coef,
                GATE=GATES[objective.gate], KL=KL_ESTIMATORS[objective.kl], ONE_BLOCK=V <= block,
                VECTOR=vector_width(logits, out), BLOCK=block,
                num_warps=warps, enable_fp_fusion=True,
            )  # fmt: skip
        return loss_and_metrics(statistics, weight)


@triton.jit(do_not_specialize=_RUN_TIME[1:5], do_not_specialize_on_alignment=["factor_ptr"])
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
