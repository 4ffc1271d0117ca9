# SPDX-License-Identifier: Apache-2.0
"""Hands token_objective to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.cpu.arguments import address, addresses, objective_arguments
from rlkern.backends.eager.token_logprob import accumulation_dtype
from rlkern.backends.eager.token_objective import METRICS, Objective, Rows


def scalars(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns room for (loss, metrics) of logits or log-probabilities of this dtype."""
    dtype = accumulation_dtype(dtype)
    return torch.empty((), dtype=dtype), torch.empty(len(METRICS), dtype=dtype)


def token_objective(
    logprob: Tensor,
    entropy: Tensor,
    rows: Rows,
    cu_seqlens: Tensor | None,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_logprob, grad_entropy)."""
    out = (*scalars(logprob.dtype), torch.empty_like(logprob), torch.empty_like(entropy))
    count, time = logprob.shape if cu_seqlens is None else (cu_seqlens.numel() - 1, 0)
    _C.token_objective(
        (count, time, address(cu_seqlens)),
        logprob.dtype == torch.float64,
        addresses(logprob, entropy),
        addresses(*rows),
        objective_arguments(objective),
        addresses(*out),
    )
    return out
