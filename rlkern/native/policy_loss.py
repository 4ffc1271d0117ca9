# SPDX-License-Identifier: Apache-2.0
"""Hands policy_loss and token_objective to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.native.arguments import address, addresses, grid
from rlkern.reference.token_objective import GATE_INDEX, KL_INDEX, METRICS, Objective


def _objective(objective: Objective) -> tuple:
    gate, coef, kl, *rest = objective
    return (GATE_INDEX[gate], coef, KL_INDEX[kl], *rest)


def _scalars(like: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty((), dtype=dtype), torch.empty(len(METRICS), dtype=dtype)


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
    """Returns (loss, metrics) and writes the gradient into grad_logits, which may be logits."""
    loss, metrics = _scalars(logits)
    _C.policy_loss(
        grid(logits),
        address(token),
        addresses(advantage, weight, old_logprob, ref_logprob),
        address(inv_temperature),
        _objective(objective),
        None if grad_logits is None else grid(grad_logits),
        *addresses(loss, metrics),
        torch.get_num_threads(),
    )
    return loss, metrics


def token_objective(
    logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    weight: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_logprob, grad_entropy)."""
    loss, metrics = _scalars(logprob)
    grad_logprob, grad_entropy = torch.empty_like(logprob), torch.empty_like(entropy)
    _C.token_objective(
        logprob.numel(),
        logprob.dtype == torch.float64,
        *addresses(logprob, entropy),
        addresses(advantage, weight, old_logprob, ref_logprob),
        _objective(objective),
        addresses(loss, metrics, grad_logprob, grad_entropy),
    )
    return loss, metrics, grad_logprob, grad_entropy


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor, in place; by 1 costs nothing."""
    if factor.item() != 1:
        tensor.mul_(factor.item())


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor; tensor itself where the factor is 1."""
    return tensor if factor.item() == 1 else tensor * factor.item()
