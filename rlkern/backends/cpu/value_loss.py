# SPDX-License-Identifier: Apache-2.0
"""Hands value_loss to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.eager.value_loss import VALUE_KIND_INDEX, VALUE_METRICS
from rlkern.backends.memory import fresh


def value_loss(
    value: Tensor, target: Tensor, old_value: Tensor | None, weight: Tensor, kind: str, coef: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_value) of loss = Σ weight·ℓ."""
    loss, grad_value = value.new_empty(()), fresh(value.shape, value)
    metrics = torch.empty(len(VALUE_METRICS), dtype=torch.float64)
    clip, delta = coef.tolist()
    _C.value_loss(
        value=value,
        target=target,
        old_value=old_value,
        weight=weight,
        kind=VALUE_KIND_INDEX[kind],
        clip=clip,
        delta=delta,
        loss=loss,
        metrics=metrics,
        grad_value=grad_value,
        threads=torch.get_num_threads(),
    )
    return loss, metrics, grad_value
