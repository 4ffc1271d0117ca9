# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the single-pass policy loss: token_logprob followed by token_objective."""

import torch
from torch import Tensor

from rlkern.reference.autograd import recording
from rlkern.reference.token_logprob import differentiable_token_logprob
from rlkern.reference.token_objective import Objective, token_objective


def policy_loss(
    logits: Tensor,
    token: Tensor,
    advantage: Tensor,
    weight: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    inv_temperature: Tensor | None,
    objective: Objective,
    grad_logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics) of Σ weight·ℓ; writes ∂loss/∂logits into grad_logits if given."""
    with recording():
        leaf = logits.detach().requires_grad_()
        logprob, entropy, _ = differentiable_token_logprob(
            leaf, token, weight != 0, inv_temperature
        )
        loss, metrics, grad_logprob, grad_entropy = token_objective(
            logprob, entropy, advantage, weight, old_logprob, ref_logprob, objective
        )
        if grad_logits is not None:
            grads = (grad_logprob, grad_entropy)
            (gradient,) = torch.autograd.grad((logprob, entropy), leaf, grads)
    if grad_logits is not None:
        grad_logits.copy_(gradient)
    return loss, metrics


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor, for a scalar factor of any size; may be tensor itself for 1."""
    return (tensor.to(factor.dtype) * factor).to(tensor.dtype)


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor, in place."""
    tensor.copy_(scaled(tensor, factor))
