# SPDX-License-Identifier: Apache-2.0
"""The loss of a value estimate, its metrics and its gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.value_loss import VALUE_KINDS
from rlkern.backends.triton._rows import row_scalar
from rlkern.backends.triton._value import loss_and_metrics, new_sums, store_block_sums, value_term

_BLOCK = 512
_ROWS = ["value_ptr", "target_ptr", "old_ptr", "weight_ptr", "sums_ptr", "grad_ptr"]


@triton.jit(do_not_specialize=["N", "blocks"], do_not_specialize_on_alignment=_ROWS)
def value_loss_kernel(
    value_ptr, target_ptr, old_ptr, weight_ptr, sums_ptr, grad_ptr, N: tl.int64, blocks: tl.int64,
    clip: tl.float32, delta: tl.float32,
    PENALTY: tl.constexpr, RULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per block of elements.

    - reads value, target, old value and weight; of an element of weight 0 nothing but the weight
    - writes the gradient and eight sums per block
    - never materialises errors or clipped estimates
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    weight = tl.load(weight_ptr + i, mask=inside, other=0.0)
    counted = weight != 0
    value = tl.load(value_ptr + i, mask=counted, other=0.0)
    target = tl.load(target_ptr + i, mask=counted, other=0.0)
    old = row_scalar(old_ptr, i, counted, 0.0)
    term, slope, clipped = value_term(value, target, old, clip, delta, PENALTY, RULE)
    store_block_sums(sums_ptr, blocks, counted, weight * term, value, target, clipped)
    tl.store(grad_ptr + i, tl.where(counted, weight * slope, 0.0), mask=inside)


def value_loss(
    value: Tensor, target: Tensor, old_value: Tensor | None, weight: Tensor, kind: str, coef: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_value) of loss = Σ weight·ℓ."""
    grad_value, N = torch.empty_like(value), value.numel()
    blocks = triton.cdiv(N, _BLOCK)
    sums = new_sums(value, blocks)
    penalty, rule = VALUE_KINDS[kind]
    with torch.cuda.device_of(value):
        if N:
            value_loss_kernel[(blocks,)](
                value, target, old_value, weight, sums, grad_value, N, blocks, *coef.tolist(),
                PENALTY=penalty.__name__, RULE=rule, BLOCK=_BLOCK,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        loss, metrics = loss_and_metrics(sums)
    return loss, metrics, grad_value
