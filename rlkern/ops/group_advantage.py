# SPDX-License-Identifier: Apache-2.0
"""The operation group_advantage: rewards compared within their group."""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.ops import check
from rlkern.ops.library import register
from rlkern.reference.group_advantage import KINDS

_advantage = register(
    "group_advantage(Tensor reward, Tensor order, Tensor offset, str kind, float eps, int ddof)"
    " -> Tensor",
    lambda reward, *rest: implementation("group_advantage", reward)(reward, *rest),
    lambda reward, *rest: torch.empty_like(reward),
)


def group_segments(group: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (order, offset): indices group by group, and where each group begins in them.

    offset has one entry more than there are rewards; the groups that do not exist are empty.
    Knowing how many there are would cost a host synchronisation.

    >>> order, offset = group_segments(torch.tensor([7, 3, 7]))
    >>> order.tolist(), offset.tolist()
    ([1, 0, 2], [0, 1, 3, 3])
    """
    order = torch.argsort(group, stable=True)
    sorted_group = group[order]
    is_new = torch.ones_like(group)
    is_new[1:] = sorted_group[1:] != sorted_group[:-1]
    dense = is_new.cumsum(0) - 1
    bounds = torch.arange(group.numel() + 1, device=group.device)
    return order, torch.searchsorted(dense, bounds)


def group_advantage(
    reward: Tensor,
    group: Tensor,
    *,
    kind: str = "normalized",
    eps: float = 1e-4,
    ddof: int = 1,
) -> Tensor:
    """Returns the advantage of each reward relative to its group.

        normalized     (r − mean) / (std + eps)          GRPO, arXiv 2402.03300 §4.1.2
        centered       r − mean                          Dr. GRPO, arXiv 2503.20783 §3.2
        leave_one_out  r − mean of the others            RLOO, arXiv 2402.14740 §3.2

    The variance is divided by n − ddof. ddof = 1, eps = 1e-4 is TRL's convention; verl has 1e-6.

    Arguments
        reward  (N,) float32 or float64; NaN marks an unscorable answer
        group   (N,) int64 or int32 ids, of any value and in any order
    Returns
        (N,) advantage; 0 for NaN rewards, which no statistic counts, and for groups of one
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none: advantages are constants

    >>> reward, group = torch.tensor([1.0, 0.0, 0.0, 5.0]), torch.tensor([0, 0, 1, 1])
    >>> group_advantage(reward, group, kind="leave_one_out").tolist()
    [1.0, -1.0, -5.0, 5.0]
    """
    op = "group_advantage"
    check.tensor(op, "reward", reward, (torch.float32, torch.float64))
    if reward.ndim != 1:
        raise ValueError(f"{op}: reward must be (N,), got {check.describe(reward)}")
    check.like(op, "group", group, reward.shape, reward, check.INTEGERS)
    if kind not in KINDS:
        raise ValueError(f"{op}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if ddof not in (0, 1):
        raise ValueError(f"{op}: ddof must be 0 or 1, got {ddof}")
    eps = check.number(op, "eps", eps)
    if eps < 0:
        raise ValueError(f"{op}: eps must be at least 0, got {eps}")
    check.finite_values(op, "reward", reward, ~reward.isnan())
    order, offset = group_segments(group.to(torch.int64))
    return _advantage(reward.detach().contiguous(), order, offset, kind, eps, ddof)
