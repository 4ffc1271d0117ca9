# SPDX-License-Identifier: Apache-2.0
"""Hands policy_loss to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.cpu.arguments import numbered
from rlkern.backends.cpu.token_objective import scalars
from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.eager.token_objective import Objective, Rows


def policy_loss(
    logits: Tensor,
    token: Tensor,
    rows: Rows,
    softmax: Softmax,
    objective: Objective,
    grad_logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics) and writes the gradient into grad_logits, which may be logits."""
    loss, metrics = scalars(rows.weight.dtype)
    _C.policy_loss(
        logits=logits,
        token=token,
        rows=rows,
        softmax=softmax,
        objective=numbered(objective),
        grad_logits=grad_logits,
        loss=loss,
        metrics=metrics,
        threads=torch.get_num_threads(),
    )
    return loss, metrics


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor, in place; by 1 costs nothing."""
    if factor.item() != 1:
        tensor.mul_(factor.item())


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor; tensor itself where the factor is 1."""
    return tensor if factor.item() == 1 else tensor * factor.item()
