# SPDX-License-Identifier: Apache-2.0
"""The operation reverse_scan: x_t = bias_t + decay_t · x_{t+1}, differentiable."""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.backends.eager.reverse_scan import last_steps
from rlkern.ops import _check as check
from rlkern.ops._library import refuse_double_backward, register, register_gradient

_scan = register(
    "reverse_scan(Tensor bias, Tensor decay, Tensor? cu_seqlens) -> Tensor",
    lambda bias, *rest: implementation("reverse_scan", bias)(bias, *rest),
    lambda bias, *rest: torch.empty_like(bias),
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:], output)


def _autograd(ctx, grad):
    refuse_double_backward("reverse_scan")
    decay, cu_seqlens, x = ctx.saved_tensors
    # The gradient runs forwards, g_t = grad_t + decay_{t−1}·g_{t−1}: the same scan, flipped.
    flipped = None
    if cu_seqlens is not None:
        decay = torch.where(last_steps(decay, cu_seqlens), 0.0, decay)
        flipped = (cu_seqlens[-1] - cu_seqlens.flip(0)).contiguous()
    previous_decay = torch.nn.functional.pad(decay[..., :-1], (1, 0))
    flips = (grad.flip(-1).contiguous(), previous_decay.flip(-1).contiguous())
    grad_bias = _scan(*flips, flipped).flip(-1)
    following = torch.nn.functional.pad(x[..., 1:], (0, 1))
    if cu_seqlens is not None:
        following = torch.where(last_steps(x, cu_seqlens), 0.0, following)
    return grad_bias, grad_bias * following


register_gradient(_scan, _autograd, _setup_context, inputs=2)


def reverse_scan(bias: Tensor, decay: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} along the last dimension, 0 after the end.

    Discounted returns, λ-returns and GAE are this recurrence. decay_t = 0 cuts it, also from values
    that are not finite.

    Arguments
        bias        (..., T) float32 or float64; packed sequences are (N,)
        decay       of the same shape and dtype
        cu_seqlens  (S + 1,) int64 or int32: where each packed sequence begins, and the last ends
    Returns
        x           of the same shape and dtype; packed or padded, a sequence has the same bits
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        to bias and decay

    >>> import torch
    >>> ones, half = torch.ones(4), torch.full((4,), 0.5)
    >>> reverse_scan(ones, half).tolist()
    [1.875, 1.75, 1.5, 1.0]
    >>> reverse_scan(ones, half, cu_seqlens=torch.tensor([0, 3, 4])).tolist()
    [1.75, 1.5, 1.0, 1.0]
    """
    op = "reverse_scan"
    floats = (torch.float32, torch.float64)
    check.tensor(op, "bias", bias, floats)
    check.like(op, "decay", decay, bias.shape, bias, (bias.dtype,))
    if bias.ndim == 0:
        raise ValueError(f"{op}: bias must have a time dimension, got a scalar")
    if cu_seqlens is not None:
        bounds = check.sequence_bounds(op, cu_seqlens, bias.shape, bias.device)
        return _scan(bias.contiguous(), decay.contiguous(), bounds)
    length = bias.shape[-1]
    rows = bias.numel() // length if length else 0
    flat = (bias.reshape(rows, length).contiguous(), decay.reshape(rows, length).contiguous())
    return _scan(*flat, None).reshape(bias.shape)
