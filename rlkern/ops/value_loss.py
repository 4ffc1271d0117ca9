# SPDX-License-Identifier: Apache-2.0
"""The operation value_loss: loss, metrics and gradient of a value estimate in one call."""

import torch

from rlkern.backends import implementation
from rlkern.ops.library import refuse_double_backward, register
from rlkern.ops.policy_loss import _scaled as scaled_gradient
from rlkern.reference.value_loss import VALUE_METRICS


def _fake(value, *rest):
    metrics = value.new_empty((len(VALUE_METRICS),), dtype=torch.float64)
    return value.new_empty(()), metrics, torch.empty_like(value)


# coef (2,) float64 on the CPU: clip and delta.
value_loss = register(
    "value_loss(Tensor value, Tensor target, Tensor? old_value, Tensor weight, str kind,"
    " Tensor coef) -> (Tensor, Tensor, Tensor)",
    lambda value, *rest: implementation("value_loss", value)(value, *rest),
    _fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_loss, *unused):
    refuse_double_backward("value_loss")
    if grad_loss is None:
        return (None,) * 6
    return scaled_gradient(ctx.saved_tensors[0], grad_loss), *(None,) * 5


torch.library.register_autograd("rlkern::value_loss", _autograd, setup_context=_setup_context)
