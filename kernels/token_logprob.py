# SPDX-License-Identifier: Apache-2.0
"""Log-probability of given tokens, with entropy and log-sum-exp, and the backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.kernels._rows import (
    counted_row,
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

_RUN_TIME = ["T", "V", "stride_b", "stride_t", "grad_stride_b", "grad_stride_t"]
_ROWS = [
    "token_ptr", "mask_ptr", "scale_ptr", "logprob_ptr", "entropy_ptr", "row_max_ptr",
    "log_sum_ptr", "grad_logprob_ptr", "grad_entropy_ptr", "grad_lse_ptr",
]  # fmt: skip


@triton.jit(do_not_specialize=_RUN_TIME, do_not_specialize_on_alignment=_ROWS)
def token_logprob_forward(
    logits_ptr, token_ptr, mask_ptr, scale_ptr, logprob_ptr, entropy_ptr, row_max_ptr, log_sum_ptr,
    T: tl.int64, V: tl.int32, stride_b: tl.int64, stride_t: tl.int64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row.

    - reads the row once, and one more element of it: the token's
    - writes four float32 scalars
    - never materialises probabilities; a row that does not count is not read
    """
    row = tl.program_id(0).to(tl.int64)
    counted = counted_row(mask_ptr, row)
    token = load_token(token_ptr, row, counted, V)
    scale = row_scalar(scale_ptr, row, counted, 1.0)
    row_ptr = logits_ptr + row_offset(row, T, stride_b, stride_t, VECTOR)
    own = token_logit(row_ptr, token, scale)
    m, s, t = row_sums(row_ptr, row_length(counted, V, VECTOR), scale, BLOCK)
    logprob, entropy, m, log_sum = row_results(own, m, s, t, counted)
    tl.store(logprob_ptr + row, logprob)
    tl.store(entropy_ptr + row, entropy)
    tl.store(row_max_ptr + row, m)
    tl.store(log_sum_ptr + row, log_sum)


@triton.jit(do_not_specialize=_RUN_TIME, do_not_specialize_on_alignment=_ROWS)
def token_logprob_backward_kernel(
    logits_ptr, token_ptr, mask_ptr, scale_ptr, entropy_ptr, row_max_ptr, log_sum_ptr,
    grad_logprob_ptr, grad_entropy_ptr, grad_lse_ptr, grad_ptr,
    T: tl.int64, V: tl.int32, stride_b: tl.int64, stride_t: tl.int64,
    grad_stride_b: tl.int64, grad_stride_t: tl.int64, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row; grad_ptr may be logits_ptr.

    - reads the row once, its token's logit, and the scalars the forward left
    - writes each element of the gradient once; zeros where the row does not count
    - never materialises probabilities or a one-hot row
    """
    row = tl.program_id(0).to(tl.int64)
    counted = counted_row(mask_ptr, row)
    token = load_token(token_ptr, row, counted, V)
    scale = row_scalar(scale_ptr, row, counted, 1.0)
    m = tl.load(row_max_ptr + row, mask=counted, other=0.0)
    log_sum = tl.load(log_sum_ptr + row, mask=counted, other=0.0)
    entropy = tl.load(entropy_ptr + row, mask=counted, other=0.0)
    d_logprob = row_scalar(grad_logprob_ptr, row, counted, 0.0)
    d_entropy = row_scalar(grad_entropy_ptr, row, counted, 0.0)
    d_lse = row_scalar(grad_lse_ptr, row, counted, 0.0)
    row_ptr = logits_ptr + row_offset(row, T, stride_b, stride_t, VECTOR)
    grad_row = grad_ptr + row_offset(row, T, grad_stride_b, grad_stride_t, VECTOR)
    own = token_logit(row_ptr, token, scale)
    logprob = tl.where(counted, own - m - log_sum, 0.0)
    a, b, own = gradient_scalars(logprob, entropy, log_sum, scale, d_logprob, d_entropy, d_lse)
    length = row_length(counted, V, VECTOR)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = load_block(row_ptr, columns, length, scale)
        store_gradient(grad_row, columns, z, m, token, V, a, b, own, VECTOR)


def token_logprob(
    logits: Tensor, token: Tensor, mask: Tensor | None, inv_temperature: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (logprob, entropy, row_max, log_sum), as the reference; a bad token gives NaN."""
    outputs = [torch.empty_like(token, dtype=torch.float32) for _ in range(4)]
    block, warps = launch_shape(logits.shape[2])
    if token.numel():
        with torch.cuda.device_of(logits):
            token_logprob_forward[(token.numel(),)](
                logits, token, mask, inv_temperature, *outputs, logits.shape[1], logits.shape[2],
                *row_strides(logits), VECTOR=vector_width(logits), BLOCK=block,
                num_warps=warps, enable_fp_fusion=True,
            )  # fmt: skip
    return tuple(outputs)  # type: ignore[return-value]


def token_logprob_backward(
    logits: Tensor,
    token: Tensor,
    mask: Tensor | None,
    inv_temperature: Tensor | None,
    entropy: Tensor,
    row_max: Tensor,
    log_sum: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    grad_lse: Tensor | None,
    grad_logits: Tensor,
) -> None:
    """Writes the gradient of Σ (logprob·grad_logprob + entropy·grad_entropy + lse·grad_lse)."""
    if not token.numel():
        return
    block, warps = launch_shape(logits.shape[2])
    with torch.cuda.device_of(logits):
        token_logprob_backward_kernel[(token.numel(),)](
            logits, token, mask, inv_temperature, entropy, row_max, log_sum,
            grad_logprob, grad_entropy, grad_lse, grad_logits, logits.shape[1], logits.shape[2],
            *row_strides(logits), *row_strides(grad_logits),
            VECTOR=vector_width(logits, grad_logits), BLOCK=block,
            num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
