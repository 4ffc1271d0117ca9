# SPDX-License-Identifier: Apache-2.0
"""Hands td_loss to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.cpu.arguments import addresses
from rlkern.backends.eager.td_loss import BOOTSTRAP_INDEX
from rlkern.backends.eager.value_loss import VALUE_KIND_INDEX, VALUE_METRICS


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
    _C.td_loss(
        *q.shape,
        q.dtype == torch.float64,
        BOOTSTRAP_INDEX[bootstrap],
        VALUE_KIND_INDEX[kind],
        addresses(q, action, reward, done, next_q, other, next_action, weight),
        *coef.tolist(),
        addresses(loss, metrics, grad_q, error),
        torch.get_num_threads(),
    )
    return loss, metrics, grad_q, error
