# SPDX-License-Identifier: Apache-2.0
"""Hands groups and group_advantage to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.eager.group_advantage import KINDS


def group_segments(group: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (order, offset): indices group by group, and where each group begins in them."""
    order, offset = torch.empty_like(group), group.new_empty(group.numel() + 1)
    _C.group_segments(group=group, order=order, offset=offset)
    return order, offset


def group_advantage(
    reward: Tensor,
    order: Tensor,
    offset: Tensor,
    kind: str,
    eps: float,
    ddof: int,
    length: Tensor | None = None,
) -> Tensor:
    """Returns the advantage of each reward within its group."""
    advantage = torch.empty_like(reward)
    _C.group_advantage(
        reward=reward,
        order=order,
        offset=offset,
        length=length,
        kind=KINDS.index(kind),
        eps=eps,
        ddof=ddof,
        advantage=advantage,
        threads=torch.get_num_threads(),
    )
    return advantage
