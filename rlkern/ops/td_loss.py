# SPDX-License-Identifier: Apache-2.0
"""The operation td_loss: loss, metrics, gradient and errors of action values in one call."""

import torch

from rlkern.backends import implementation
from rlkern.ops.library import refuse_double_backward, register
from rlkern.ops.policy_loss import _scaled as scaled_gradient
from rlkern.reference.value_loss import VALUE_METRICS


def _fake(q, action, reward, *rest):
    metrics = q.new_empty((len(VALUE_METRICS),), dtype=torch.float64)
    return q.new_empty(()), metrics, torch.empty_like(q), torch.empty_like(reward)


# coef (2,) float64 on the CPU: discount and delta.
td_loss = register(
    "td_loss(Tensor q, Tensor action, Tensor reward, Tensor done, Tensor next_q, Tensor? other,"
    " Tensor? next_action, Tensor weight, str bootstrap, str kind, Tensor coef)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    lambda q, *rest: implementation("td_loss", q)(q, *rest),
    _fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_loss, *unused):
    refuse_double_backward("td_loss")
    if grad_loss is None:
        return (None,) * 11
    return scaled_gradient(ctx.saved_tensors[0], grad_loss), *(None,) * 10


torch.library.register_autograd("rlkern::td_loss", _autograd, setup_context=_setup_context)
