# SPDX-License-Identifier: Apache-2.0
"""The operations policy_loss and token_objective: loss, metrics and gradient in one call."""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.ops.library import bump_version_of_first_argument, refuse_double_backward, register
from rlkern.reference.token_objective import METRICS, Objective

_ROWS = "Tensor advantage, Tensor weight, Tensor? old_logprob, Tensor? ref_logprob"
_OBJECTIVE = "str gate, float[] gate_coef, str kl, float kl_coef, float entropy_coef"


def _objective(gate, gate_coef, kl, kl_coef, entropy_coef) -> Objective:
    return Objective(gate, tuple(gate_coef), kl, kl_coef, entropy_coef)


def _scalars(like: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty((), dtype=dtype), like.new_empty((len(METRICS),), dtype=dtype)


def _policy_loss(logits, token, advantage, weight, old, ref, inv_temperature, *rest):
    *objective, want_grad = rest
    shape = logits.shape if want_grad else (0,)
    grad_logits = torch.empty(shape, dtype=logits.dtype, device=logits.device)
    loss, metrics = implementation("policy_loss", logits)(
        logits, token, advantage, weight, old, ref, inv_temperature, _objective(*objective),
        grad_logits if want_grad else None,
    )  # fmt: skip
    return loss, metrics, grad_logits


def _policy_loss_fake(logits, *rest):
    shape = logits.shape if rest[-1] else (0,)
    return *_scalars(logits), torch.empty(shape, dtype=logits.dtype, device=logits.device)


def _policy_loss_in_place(logits, token, advantage, weight, old, ref, inv_temperature, *objective):
    return implementation("policy_loss", logits)(
        logits, token, advantage, weight, old, ref, inv_temperature, _objective(*objective), logits
    )


def _token_objective(logprob, entropy, advantage, weight, old, ref, *objective):
    return implementation("token_objective", logprob)(
        logprob, entropy, advantage, weight, old, ref, _objective(*objective)
    )


def _token_objective_fake(logprob, entropy, *rest):
    return *_scalars(logprob), torch.empty_like(logprob), torch.empty_like(entropy)


policy_loss = register(
    f"policy_loss(Tensor logits, Tensor token, {_ROWS}, Tensor? inv_temperature, {_OBJECTIVE},"
    " bool want_grad) -> (Tensor, Tensor, Tensor)",
    _policy_loss,
    _policy_loss_fake,
)
policy_loss_ = register(
    f"policy_loss_(Tensor(a!) logits, Tensor token, {_ROWS}, Tensor? inv_temperature, {_OBJECTIVE})"
    " -> (Tensor, Tensor)",
    _policy_loss_in_place,
    lambda logits, *rest: _scalars(logits),
)
bump_version_of_first_argument(policy_loss_)
scale_ = register(
    "scale_(Tensor(a!) tensor, Tensor factor) -> ()",
    lambda tensor, factor: implementation("scale_", tensor)(tensor, factor),
    lambda tensor, factor: None,
)
bump_version_of_first_argument(scale_)
token_objective = register(
    f"token_objective(Tensor logprob, Tensor entropy, {_ROWS}, {_OBJECTIVE})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _token_objective,
    _token_objective_fake,
)


def _save_gradient(ctx, inputs, output):
    ctx.save_for_backward(output[2])
    ctx.set_materialize_grads(False)


def _policy_loss_autograd(ctx, grad_loss, grad_metrics, grad_grad):
    refuse_double_backward("policy_loss")
    if grad_loss is None:
        return (None,) * 13
    return _scaled(ctx.saved_tensors[0], grad_loss), *(None,) * 12


def _scaled(grad_logits: Tensor, grad_loss: Tensor) -> Tensor:
    if type(grad_loss) is not Tensor or torch.compiler.is_compiling():
        return grad_logits * grad_loss  # traced: inductor fuses this
    return implementation("scaled", grad_logits)(grad_logits, grad_loss)


def _save_gradients(ctx, inputs, output):
    ctx.save_for_backward(output[2], output[3])
    ctx.set_materialize_grads(False)


def _token_objective_autograd(ctx, grad_loss, *unused):
    refuse_double_backward("token_objective")
    if grad_loss is None:
        return (None,) * 11
    grad_logprob, grad_entropy = ctx.saved_tensors
    return grad_logprob * grad_loss, grad_entropy * grad_loss, *(None,) * 9


torch.library.register_autograd(
    "rlkern::policy_loss", _policy_loss_autograd, setup_context=_save_gradient
)
torch.library.register_autograd(
    "rlkern::token_objective", _token_objective_autograd, setup_context=_save_gradients
)


class PolicyLossInPlace(torch.autograd.Function):
    """The loss whose gradient is written over the logits while they are read."""

    @staticmethod
    def forward(ctx, logits, *rest):
        storage = logits.detach()
        loss, metrics = policy_loss_(storage, *rest)
        ctx.save_for_backward(storage)
        ctx.mark_non_differentiable(metrics)
        ctx.arguments = 1 + len(rest)
        return loss, metrics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, grad_metrics):
        (grad_logits,) = ctx.saved_tensors
        others = (None,) * (ctx.arguments - 1)
        if torch.compiler.is_compiling():  # a mutating operation would copy the buffer here
            return grad_logits * grad_loss, *others
        scale_(grad_logits, grad_loss)
        return grad_logits, *others
