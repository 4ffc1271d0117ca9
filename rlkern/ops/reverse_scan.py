# SPDX-License-Identifier: Apache-2.0
"""The operation reverse_scan: x_t = bias_t + decay_t · x_{t+1}, differentiable."""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.ops import check
from rlkern.ops.library import refuse_double_backward, register

_scan = register(
    "reverse_scan(Tensor bias, Tensor decay) -> Tensor",
    lambda bias, decay: implementation("reverse_scan", bias)(bias, decay),
    lambda bias, decay: torch.empty_like(bias),
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[1], output)


def _autograd(ctx, grad):
    refuse_double_backward("reverse_scan")
    decay, x = ctx.saved_tensors
    # The gradient runs forwards, g_t = grad_t + decay_{t−1}·g_{t−1}: the same scan, flipped.
    previous_decay = torch.nn.functional.pad(decay[:, :-1], (1, 0))
    grad_bias = _scan(grad.flip(-1).contiguous(), previous_decay.flip(-1).contiguous()).flip(-1)
    grad_decay = grad_bias * torch.nn.functional.pad(x[:, 1:], (0, 1))
    return grad_bias, grad_decay


torch.library.register_autograd("rlkern::reverse_scan", _autograd, setup_context=_setup_context)


def reverse_scan(bias: Tensor, decay: Tensor) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} along the last dimension, 0 after the end.

    Discounted returns, λ-returns and GAE are this recurrence. decay_t = 0 cuts it.

    Arguments
        bias   (..., T) float32 or float64
        decay  (..., T) of the same shape and dtype
    Returns
        x      (..., T) of the same dtype
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        to bias and decay

    >>> import torch
    >>> reverse_scan(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.5, 0.5])).tolist()
    [1.75, 1.5, 1.0]
    """
    op = "reverse_scan"
    floats = (torch.float32, torch.float64)
    check.tensor(op, "bias", bias, floats)
    check.like(op, "decay", decay, bias.shape, bias, (bias.dtype,))
    if bias.ndim == 0:
        raise ValueError(f"{op}: bias must have a time dimension, got a scalar")
    length = bias.shape[-1]
    rows = bias.numel() // length if length else 0
    flat = (bias.reshape(rows, length).contiguous(), decay.reshape(rows, length).contiguous())
    return _scan(*flat).reshape(bias.shape)
