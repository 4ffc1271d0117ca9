# SPDX-License-Identifier: Apache-2.0
"""From log-probabilities of tokens to those of sequences: sums, padded or packed."""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.ops import _check as check
from rlkern.ops._library import refuse_double_backward, register


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


def sequence_logprob(logprob: Tensor, mask: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns the log-probability of each sequence: Σ_t logprob_t over its counted tokens.

    Added in float64, rounded once. Padded and packed input give the same bits.

    Arguments
        logprob     (B, T) float, or (N,) with cu_seqlens; anything where mask is False
        mask        of the same shape, bool, True counts
        cu_seqlens  (B + 1,) int: sequence b lies in cu_seqlens[b] to cu_seqlens[b + 1]
    Returns
        (B,) float32, float64 for float64; 0 for a sequence without a counted token
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
        RuntimeError           on double backward
    Gradient
        to logprob

    >>> logprob = torch.tensor([[-1.0, -2.0], [-3.0, torch.nan]])
    >>> sequence_logprob(logprob, torch.tensor([[True, True], [True, False]])).tolist()
    [-3.0, -3.0]
    """
    return segment_sum("sequence_logprob", logprob, mask, cu_seqlens)[0]


def mean_sequence_logprob(
    logprob: Tensor, mask: Tensor, *, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Returns the mean log-probability per counted token of each sequence.

    Arguments, gradient and errors are those of sequence_logprob.

    >>> logprob, cu_seqlens = torch.tensor([-1.0, -2.0, -5.0]), torch.tensor([0, 2, 3])
    >>> mean_sequence_logprob(logprob, torch.ones(3).bool(), cu_seqlens=cu_seqlens).tolist()
    [-1.5, -5.0]
    """
    total, count = segment_sum("mean_sequence_logprob", logprob, mask, cu_seqlens)
    return total / count.clamp(min=1)
