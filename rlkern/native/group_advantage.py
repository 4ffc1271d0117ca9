# SPDX-License-Identifier: Apache-2.0
"""Hands group_advantage to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.native.arguments import address, addresses
from rlkern.reference.group_advantage import KINDS


def group_advantage(
    reward: Tensor, order: Tensor, offset: Tensor, kind: str, eps: float, ddof: int
) -> Tensor:
    """Returns the advantage of each reward within its group."""
    advantage = torch.empty_like(reward)
    _C.group_advantage(
        reward.numel(),
        reward.dtype == torch.float64,
        *addresses(reward, order, offset),
        KINDS.index(kind),
        eps,
        ddof,
        address(advantage),
    )
    return advantage
