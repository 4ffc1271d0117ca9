# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the policy loss: token_logprob, token_objective and a backward."""

from torch import Tensor

from rlkern.backends.eager.token_logprob import (
    Softmax,
    Upstream,
    token_logprob,
    token_logprob_backward,
)
from rlkern.backends.eager.token_objective import Objective, Rows, token_objective


def policy_loss(
    logits: Tensor,
    token: Tensor,
    rows: Rows,
    softmax: Softmax,
    objective: Objective,
    grad_logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics) of Σ weight·ℓ; writes ∂loss/∂logits into grad_logits if given.

    Of level token, as a backend need not be able to do more in one sweep: no token's loss depends
    on another's. grad_logits may be logits.
    """
    assert objective.level == "token"
    mask = rows.weight != 0
    scored = token_logprob(logits, token, mask, softmax)
    loss, metrics, grad_logprob, grad_entropy = token_objective(
        scored.logprob, scored.entropy, rows, None, objective
    )
    if grad_logits is not None:
        upstream = Upstream(grad_logprob, grad_entropy)
        token_logprob_backward(
            logits, token, mask, softmax, scored.statistics, upstream, grad_logits
        )
    return loss, metrics


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor, for a scalar factor of any size; may be tensor itself for 1."""
    return (tensor.to(factor.dtype) * factor).to(tensor.dtype)


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor, in place."""
    tensor.copy_(scaled(tensor, factor))
