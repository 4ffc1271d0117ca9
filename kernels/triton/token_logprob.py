# SPDX-License-Identifier: Apache-2.0
"""Log-probability of given tokens, with entropy and log-sum-exp, and the backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.token_logprob import Scored, Softmax, Statistics, Upstream
from rlkern.backends.triton._kept import (
    kept_arguments,
    kept_length,
    kept_sums,
    scratch_for,
    store_kept_gradient,
)
from rlkern.backends.triton._rows import (
    absorb_row,
    counted_row,
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

_RUN_TIME = ["T", "V", "K", "stride_b", "stride_t", "grad_stride_b", "grad_stride_t"]
_ROWS = [
    "token_ptr", "mask_ptr", "scale_ptr", "keep_ptr", "scratch_ptr", "logprob_ptr", "entropy_ptr",
    "row_max_ptr", "log_sum_ptr", "squares_ptr", "grad_logprob_ptr", "grad_entropy_ptr",
    "grad_lse_ptr",
]  # fmt: skip


@triton.jit(do_not_specialize=_RUN_TIME, do_not_specialize_on_alignment=_ROWS)
def token_logprob_forward(
    logits_ptr, token_ptr, mask_ptr, scale_ptr, keep_ptr,
    logprob_ptr, entropy_ptr, row_max_ptr, log_sum_ptr, squares_ptr,
    T: tl.int64, V: tl.int32, K: tl.int32, softcap: tl.float32, stride_b: tl.int64,
    stride_t: tl.int64, CAPPED: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
    KEPT_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row.

    - reads the row once, or its kept ids and their columns; one more element of it: the token's
    - writes five float32 scalars
    - never materialises probabilities; a row that does not count is not read
    """
    row = tl.program_id(0).to(tl.int64)
    counted = counted_row(mask_ptr, row)
    token = load_token(token_ptr, row, counted, V)
    scale = row_scalar(scale_ptr, row, counted, 1.0)
    row_ptr = logits_ptr + row_offset(row, T, stride_b, stride_t, VECTOR)
    own = temper(token_logit(row_ptr, token), scale, softcap, CAPPED)
    length = row_length(counted, V, VECTOR)
    m, s, t, q = empty_sums()
    if keep_ptr is not None:
        keep_row = keep_ptr + row * K
        kept = kept_length(keep_row, K, counted, KEPT_BLOCK)
        length = tl.where(kept > 0, 0, length)
        m, s, t, q = kept_sums(
            row_ptr, keep_row, kept, token, own, V, scale, softcap, None, CAPPED, True, KEPT_BLOCK
        )
    m, s, t, q = absorb_row(
        row_ptr, length, length, scale, softcap, m, s, t, q, CAPPED, True, 1, BLOCK
    )
    logprob, entropy, m, log_sum = row_results(own, m, s, t, counted)
    tl.store(logprob_ptr + row, logprob)
    tl.store(entropy_ptr + row, entropy)
    tl.store(row_max_ptr + row, m)
    tl.store(log_sum_ptr + row, log_sum)
    s = tl.where(counted, s, 1.0)
    tl.store(squares_ptr + row, tl.where(counted, q / (s * s), 0.0))


@triton.jit(do_not_specialize=_RUN_TIME, do_not_specialize_on_alignment=_ROWS)
def token_logprob_backward_kernel(
    logits_ptr, token_ptr, mask_ptr, scale_ptr, keep_ptr, scratch_ptr, entropy_ptr, row_max_ptr,
    log_sum_ptr, grad_logprob_ptr, grad_entropy_ptr, grad_lse_ptr, grad_ptr,
    T: tl.int64, V: tl.int32, K: tl.int32, softcap: tl.float32, stride_b: tl.int64,
    stride_t: tl.int64, grad_stride_b: tl.int64, grad_stride_t: tl.int64,
    CAPPED: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr, KEPT_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row; grad_ptr may be logits_ptr.

    - reads the row once (or its kept columns), its token's logit, and the forward's scalars
    - writes each element of the gradient once; zeros where the row does not count, and zeros under
      the gradient of a kept set
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
    own_x = token_logit(row_ptr, token)
    own = temper(own_x, scale, softcap, CAPPED)
    logprob = tl.where(counted, own - m - log_sum, 0.0)
    slope = temper_slope(own_x, softcap, CAPPED)
    a, b, own = gradient_scalars(
        logprob, entropy, log_sum, scale, slope, d_logprob, d_entropy, d_lse
    )
    length = row_length(counted, V, VECTOR)
    if keep_ptr is not None:
        keep_row = keep_ptr + row * K
        scratch_row = scratch_ptr + row * K
        kept = kept_length(keep_row, K, counted, KEPT_BLOCK)
        length = tl.where(kept > 0, 0, length)
        kept_sums(
            row_ptr, keep_row, kept, token, own, V, scale, softcap, scratch_row,
            CAPPED, False, KEPT_BLOCK,
        )  # fmt: skip
        tl.debug_barrier()  # every warp has the kept logits before any overwrites them
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = load_block(row_ptr, columns, length)
        store_gradient(grad_row, columns, x, m, token, V, a, b, own, scale, softcap, CAPPED, VECTOR)
    if keep_ptr is not None:
        store_kept_gradient(
            grad_row, keep_row, kept, token, V, scratch_row, m, a, b, scale, softcap,
            CAPPED, KEPT_BLOCK,
        )  # fmt: skip


def token_logprob(logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax) -> Scored:
    """Returns what is left of each row, as the reference; a bad token gives a logprob of NaN."""
    scored = Scored(*(torch.empty_like(token, dtype=torch.float32) for _ in Scored._fields))
    block, warps = launch_shape(logits.shape[2])
    keep, K, kept_block = kept_arguments(softmax, block)
    if token.numel():
        with torch.cuda.device_of(logits):
            token_logprob_forward[(token.numel(),)](
                logits, token, mask, softmax.inv_temperature, keep, *scored, logits.shape[1],
                logits.shape[2], K, float(softmax.softcap), *row_strides(logits),
                CAPPED=softmax.softcap != 0, VECTOR=vector_width(logits), BLOCK=block,
                KEPT_BLOCK=kept_block, num_warps=warps, enable_fp_fusion=True,
            )  # fmt: skip
    return scored


def token_logprob_backward(
    logits: Tensor,
    token: Tensor,
    mask: Tensor | None,
    softmax: Softmax,
    statistics: Statistics,
    upstream: Upstream,
    grad_logits: Tensor,
) -> None:
    """Writes the gradient of Σ (logprob·d_logprob + entropy·d_entropy + lse·d_lse), d_ upstream."""
    if not token.numel():
        return
    block, warps = launch_shape(logits.shape[2])
    keep, K, kept_block = kept_arguments(softmax, block)
    with torch.cuda.device_of(logits):
        token_logprob_backward_kernel[(token.numel(),)](
            logits, token, mask, softmax.inv_temperature, keep, scratch_for(softmax), *statistics,
            *upstream, grad_logits, logits.shape[1], logits.shape[2], K, float(softmax.softcap),
            *row_strides(logits), *row_strides(grad_logits), CAPPED=softmax.softcap != 0,
            VECTOR=vector_width(logits, grad_logits), BLOCK=block, KEPT_BLOCK=kept_block,
            num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
