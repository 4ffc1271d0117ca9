# SPDX-License-Identifier: Apache-2.0
"""The operation segment_sum: sums over sequences, padded or packed, differentiable."""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.ops import check
from rlkern.ops.library import refuse_double_backward, register


def _fake(x, mask, offset):
    count = x.shape[0] if offset is None else offset.shape[0] - 1
    return x.new_empty((count,)), x.new_empty((count,))


_sum = register(
    "segment_sum(Tensor x, Tensor mask, Tensor? offset) -> (Tensor, Tensor)",
    lambda x, *rest: implementation("segment_sum", x)(x, *rest),
    _fake,
)
_backward = register(
    "segment_sum_backward(Tensor grad, Tensor mask, Tensor? offset) -> Tensor",
    lambda grad, *rest: implementation("segment_sum_backward", grad)(grad, *rest),
    lambda grad, mask, offset: grad.new_empty(mask.shape),
)


def _setup_context(ctx, inputs, output):
    _, mask, offset = inputs
    ctx.save_for_backward(mask, offset)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_total, grad_count):
    refuse_double_backward("segment_sum")
    if grad_total is None:
        return None, None, None
    return _backward(grad_total.contiguous(), *ctx.saved_tensors), None, None


torch.library.register_autograd("rlkern::segment_sum", _autograd, setup_context=_setup_context)


def _checked_offset(op: str, cu_seqlens: object, x: Tensor) -> Tensor:
    offset = check.tensor(op, "cu_seqlens", cu_seqlens, check.INTEGERS)
    if offset.ndim != 1 or offset.numel() == 0 or offset.device != x.device:
        expected = f"(B + 1,) on {x.device}"
        raise ValueError(f"{op}: cu_seqlens must be {expected}, got {check.describe(offset)}")
    if x.ndim != 1:
        raise ValueError(f"{op}: with cu_seqlens logprob must be (N,), got {check.describe(x)}")
    if check.checks_values():
        rises = bool((offset.diff() >= 0).all())
        if not (rises and offset[0] == 0 and offset[-1] == x.numel()):
            raise ValueError(f"{op}: cu_seqlens must rise from 0 to {x.numel()}, got {offset}")
    return offset.to(torch.int64).contiguous()


def segment_sum(
    op: str, x: Tensor, mask: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns (sum, count) of each sequence for a public function of that name, checked.

    x is (B, T) floating point, or (N,) with cu_seqlens (B + 1,); both results are (B,) float32,
    float64 for float64. Added in float64 in an order that depends on places within the sequence
    alone: padded and packed input give the same bits.
    """
    check.tensor(op, "logprob", x, check.FLOATS)
    check.like(op, "mask", mask, x.shape, x, (torch.bool,))
    offset = None if cu_seqlens is None else _checked_offset(op, cu_seqlens, x)
    if offset is None and x.ndim != 2:
        raise ValueError(f"{op}: logprob must be (B, T), got {check.describe(x)}")
    check.finite_values(op, "logprob", x, mask)
    if x.dtype != torch.float64:
        x = x.float()
    return _sum(x.contiguous(), mask.contiguous(), offset)
