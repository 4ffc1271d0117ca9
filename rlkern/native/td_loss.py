# SPDX-License-Identifier: Apache-2.0
"""Hands td_loss to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.reference.td_loss import BOOTSTRAP_INDEX
from rlkern.reference.value_loss import VALUE_KIND_INDEX, VALUE_METRICS


def td_loss(
    q: Tensor,
    action: Tensor,
    reward: Tensor,
    done: Tensor,
    next_q: Tensor,
    other: Tensor | None,
    next_action: Tensor | None,
    weight: Tensor,
    bootstrap: str,
    kind: str,
    coef: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_q, error)."""
    loss, grad_q, error = q.new_empty(()), torch.empty_like(q), torch.empty_like(reward)
    metrics = torch.empty(len(VALUE_METRICS), dtype=torch.float64)
    discount, delta = coef.tolist()
    _C.td_loss(
        q=q,
        action=action,
        reward=reward,
        done=done,
        next_q=next_q,
        other=other,
        next_action=next_action,
        weight=weight,
        bootstrap=BOOTSTRAP_INDEX[bootstrap],
        kind=VALUE_KIND_INDEX[kind],
        discount=discount,
        delta=delta,
        loss=loss,
        metrics=metrics,
        grad_q=grad_q,
        error=error,
        threads=torch.get_num_threads(),
    )
    return loss, metrics, grad_q, error
