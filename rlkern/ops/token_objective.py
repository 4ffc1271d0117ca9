# SPDX-License-Identifier: Apache-2.0
"""The operation token_objective: the policy loss of log-probabilities that are already there."""

import torch
from torch import Tensor

from rlkern.algorithms import Algorithm
from rlkern.backends import implementation
from rlkern.backends.eager.token_objective import Objective, Rows, token_metrics, token_terms
from rlkern.ops import _check as check
from rlkern.ops._library import refuse_double_backward, register, register_gradient
from rlkern.ops._loss_output import LossOutput
from rlkern.ops._objective import OBJECTIVE, ROWS, LossArguments, checked_arguments, scalars


def _forward(logprob, entropy, *rest):
    *rows, cu_seqlens, gate, level, kl, coefficients = rest
    objective = Objective.of(gate, level, kl, coefficients.tolist())
    return implementation("token_objective", logprob)(
        logprob, entropy, Rows(*rows), cu_seqlens, objective
    )


def _forward_fake(logprob, entropy, *rest):
    return *scalars(logprob), torch.empty_like(logprob), torch.empty_like(entropy)


forward = register(
    f"token_objective(Tensor logprob, Tensor entropy, {ROWS}, {OBJECTIVE})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output[2], output[3])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_loss, *unused):
    refuse_double_backward("token_objective")
    if grad_loss is None:
        return None, None
    grad_logprob, grad_entropy = ctx.saved_tensors
    return grad_logprob * grad_loss, grad_entropy * grad_loss


register_gradient(forward, _autograd, _setup_context, inputs=2)


def _terms(
    logprob: Tensor, entropy: Tensor, rows: Rows, bounds: Tensor | None, objective: Objective
) -> LossOutput:
    """Returns the terms of the loss by the eager formula, which PyTorch differentiates."""
    counted, rows = rows.weight != 0, rows.selected()
    logprob, entropy = (torch.where(counted, x, 0.0) for x in (logprob, entropy))
    with torch.no_grad():
        metrics = token_metrics(logprob, entropy, rows, objective, bounds)
    return LossOutput(token_terms(logprob, entropy, rows, objective, bounds), metrics)


def token_objective(
    logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    entropy: Tensor | None = None,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    correction: Tensor | None = None,
    penalty: Tensor | None = None,
    entropy_weight: Tensor | None = None,
    nll_weight: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    algorithm: str | Algorithm = "grpo",
    weight: Tensor | None = None,
    reduction: str = "sum",
    **coefficients: float | str,
) -> LossOutput:
    """Returns the same loss as policy_loss from log-probabilities that are already there.

    The arguments are those of policy_loss with logprob (B, T) in place of logits and token;
    entropy (B, T) is needed when entropy_coef is not 0.

    With reduction "none" the loss is (B, T): the terms whose sum it is otherwise, so that with
    weight = mask.float() it is the ℓ of each token. They come from the eager formula, not from a
    kernel, and PyTorch differentiates them.

    Gradient
        to logprob and entropy

    >>> logprob = torch.log(torch.tensor([[0.5]])).requires_grad_()
    >>> out = token_objective(logprob, torch.tensor([3.0]), torch.tensor([[True]]))
    >>> out.loss.backward()
    >>> logprob.grad.tolist()
    [[-3.0]]
    """
    op = "token_objective"
    check.tensor(op, "logprob", logprob, (torch.float32, torch.float64))
    shape = logprob.shape
    if entropy is not None:
        check.like(op, "entropy", entropy, shape, logprob, (logprob.dtype,))
    given = LossArguments(
        advantage, mask, old_logprob, ref_logprob, correction, penalty, entropy_weight, nll_weight,
        cu_seqlens, weight, algorithm, coefficients,
    )  # fmt: skip
    checked = checked_arguments(op, logprob, shape, given)
    check.finite_values(op, "logprob", logprob, mask)
    if reduction not in ("sum", "none"):
        raise ValueError(f"{op}: reduction must be sum or none, got {reduction!r}")
    entropy_coef = checked.objective.entropy_coef
    if entropy_coef != 0 and entropy is None:
        raise ValueError(f"{op}: entropy_coef is {entropy_coef}, so entropy must be given")
    if len(shape) != 2:
        shape = torch.Size((1, shape.numel()))
    entropy = torch.zeros_like(logprob) if entropy is None else entropy

    def as_rows(x: Tensor) -> Tensor:
        return x.to(logprob.dtype).reshape(shape).contiguous()

    rows = checked.rows.each(lambda x: as_rows(x.detach()))
    scores = as_rows(logprob), as_rows(entropy)
    if reduction == "none":
        out = _terms(*scores, rows, checked.bounds, checked.objective)
        return out._replace(loss=out.loss.reshape(logprob.shape))
    loss, metrics, _, _ = forward(*scores, *rows, *checked.operator_form())
    return LossOutput(loss, metrics)
