# SPDX-License-Identifier: Apache-2.0
"""Hands td_loss to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.eager.td_loss import BOOTSTRAP_INDEX, Transitions
from rlkern.backends.eager.value_loss import VALUE_KIND_INDEX, VALUE_METRICS


def td_loss(
    q: Tensor, transitions: Transitions, bootstrap: str, kind: str, coef: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, error, grad_q) in one pass over the rows of the tables."""
    loss = torch.empty((), dtype=q.dtype)
    metrics = torch.empty(len(VALUE_METRICS), dtype=torch.float64)
    error, grad_q = torch.empty_like(transitions.reward), torch.empty_like(q)
    discount, delta = coef.tolist()
    _C.td_loss(
        q=q,
        **transitions._asdict(),
        bootstrap=BOOTSTRAP_INDEX[bootstrap],
        kind=VALUE_KIND_INDEX[kind],
        discount=discount,
        delta=delta,
        loss=loss,
        metrics=metrics,
        error=error,
        grad_q=grad_q,
        threads=torch.get_num_threads(),
    )
    return loss, metrics, error, grad_q
