# SPDX-License-Identifier: Apache-2.0
"""Hands token_objective to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.cpu.arguments import numbered
from rlkern.backends.eager.token_objective import METRICS, Objective, Rows


def scalars(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns room for (loss, metrics) of rows of this dtype."""
    return torch.empty((), dtype=dtype), torch.empty(len(METRICS), dtype=dtype)


def token_objective(
    logprob: Tensor,
    entropy: Tensor,
    rows: Rows,
    cu_seqlens: Tensor | None,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_logprob, grad_entropy)."""
    loss, metrics = scalars(logprob.dtype)
    grad_logprob, grad_entropy = torch.empty_like(logprob), torch.empty_like(entropy)
    _C.token_objective(
        logprob=logprob,
        entropy=entropy,
        rows=rows,
        cu_seqlens=cu_seqlens,
        objective=numbered(objective),
        loss=loss,
        metrics=metrics,
        grad_logprob=grad_logprob,
        grad_entropy=grad_entropy,
    )
    return loss, metrics, grad_logprob, grad_entropy
