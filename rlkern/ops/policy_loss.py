# SPDX-License-Identifier: Apache-2.0
"""The operations policy_loss and token_objective: loss, metrics and gradient in one call.

An objective of level token runs in one sweep of a backend's policy_loss. Where a sequence decides,
the sweep must end before the first gradient element: token_logprob, token_objective and the
backward of the first are then three passes over the logits, which is as few as there can be.
"""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.memory import fresh
from rlkern.ops.library import bump_version_of_first_argument, refuse_double_backward, register
from rlkern.reference.token_logprob import Softmax, Upstream, accumulation_dtype
from rlkern.reference.token_objective import METRICS, Objective, Rows

_ROWS = (
    "Tensor advantage, Tensor weight, Tensor? old_logprob, Tensor? ref_logprob, Tensor? correction"
)
_SOFTMAX = "Tensor? inv_temperature, float softcap, Tensor? keep"
# coefficients (6,) float64 on the CPU: a float argument would make torch.compile compile anew for
# every value. Their order is Objective.numbers.
_OBJECTIVE = "Tensor? cu_seqlens, str gate, str level, str kl, Tensor coefficients"


def _parts(arguments):
    """Returns (rows, softmax, cu_seqlens, objective) of what follows logits and token."""
    rows, softmax = Rows(*arguments[:5]), Softmax(*arguments[5:8])
    cu_seqlens, gate, level, kl, coefficients = arguments[8:]
    return rows, softmax, cu_seqlens, Objective.of(gate, level, kl, coefficients.tolist())


def _run(logits, token, arguments, grad_logits):
    rows, softmax, cu_seqlens, objective = _parts(arguments)
    if objective.level == "token":
        return implementation("policy_loss", logits)(
            logits, token, rows, softmax, objective, grad_logits
        )
    mask = rows.weight != 0
    scored = implementation("token_logprob", logits)(logits, token, mask, softmax)
    loss, metrics, *grads = implementation("token_objective", scored[0])(
        scored[0], scored[1], rows, cu_seqlens, objective
    )
    if grad_logits is not None:
        implementation("token_logprob_backward", logits)(
            logits, token, mask, softmax, scored.statistics, Upstream(*grads), grad_logits
        )
    return loss, metrics


def _scalars(like: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(like.dtype)
    return like.new_empty((), dtype=dtype), like.new_empty((len(METRICS),), dtype=dtype)


def _policy_loss(logits, token, *rest):
    *arguments, want_grad = rest
    shape = logits.shape if want_grad else (0,)
    grad_logits = fresh(shape, logits)
    return *_run(logits, token, arguments, grad_logits if want_grad else None), grad_logits


def _policy_loss_fake(logits, *rest):
    shape = logits.shape if rest[-1] else (0,)
    return *_scalars(logits), torch.empty(shape, dtype=logits.dtype, device=logits.device)


def _token_objective(logprob, entropy, *rest):
    *rows, cu_seqlens, gate, level, kl, coefficients = rest
    objective = Objective.of(gate, level, kl, coefficients.tolist())
    return implementation("token_objective", logprob)(
        logprob, entropy, Rows(*rows), cu_seqlens, objective
    )


def _token_objective_fake(logprob, entropy, *rest):
    return *_scalars(logprob), torch.empty_like(logprob), torch.empty_like(entropy)


policy_loss = register(
    f"policy_loss(Tensor logits, Tensor token, {_ROWS}, {_SOFTMAX}, {_OBJECTIVE},"
    " bool want_grad) -> (Tensor, Tensor, Tensor)",
    _policy_loss,
    _policy_loss_fake,
)
policy_loss_ = register(
    f"policy_loss_(Tensor(a!) logits, Tensor token, {_ROWS}, {_SOFTMAX}, {_OBJECTIVE})"
    " -> (Tensor, Tensor)",
    lambda logits, token, *rest: _run(logits, token, rest, logits),
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
    ctx.others = len(inputs) - 1
    ctx.set_materialize_grads(False)


def _policy_loss_autograd(ctx, grad_loss, grad_metrics, grad_grad):
    refuse_double_backward("policy_loss")
    if grad_loss is None:
        return (None,) * (ctx.others + 1)
    return _scaled(ctx.saved_tensors[0], grad_loss), *(None,) * ctx.others


def _scaled(grad_logits: Tensor, grad_loss: Tensor) -> Tensor:
    if type(grad_loss) is not Tensor or torch.compiler.is_compiling():
        return grad_logits * grad_loss  # traced: inductor fuses this
    return implementation("scaled", grad_logits)(grad_logits, grad_loss)


def _save_gradients(ctx, inputs, output):
    ctx.save_for_backward(output[2], output[3])
    ctx.others = len(inputs) - 2
    ctx.set_materialize_grads(False)


def _token_objective_autograd(ctx, grad_loss, *unused):
    refuse_double_backward("token_objective")
    if grad_loss is None:
        return (None,) * (ctx.others + 2)
    grad_logprob, grad_entropy = ctx.saved_tensors
    return grad_logprob * grad_loss, grad_entropy * grad_loss, *(None,) * ctx.others


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
    def backward(ctx, grad_loss, grad_metrics):
        (grad_logits,) = ctx.saved_tensors
        others = (None,) * (ctx.arguments - 1)
        if torch.compiler.is_compiling():  # a mutating operation would copy the buffer here
            return grad_logits * grad_loss, *others
        refuse_double_backward("policy_loss")
        scale_(grad_logits, grad_loss)
        return grad_logits, *others
