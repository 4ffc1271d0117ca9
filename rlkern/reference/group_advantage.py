# SPDX-License-Identifier: Apache-2.0
"""Eager definition of group-relative advantages."""

import torch
from torch import Tensor

KINDS = ("normalized", "centered", "leave_one_out")


def group_advantage(
    reward: Tensor, order: Tensor, offset: Tensor, kind: str, eps: float, ddof: int
) -> Tensor:
    """Returns the advantage of each reward within its group.

    order lists the rewards group by group; group i is order[offset[i]:offset[i+1]].
    normalized     (r − mean) / (std + eps), the variance divided by n − ddof
    centered       r − mean
    leave_one_out  r − mean of the others = n/(n−1) · (r − mean)
    NaN rewards are excluded from the statistics and get 0, as do the members of a group that
    agrees, also with eps = 0, and the only member of a group.
    """
    group = torch.searchsorted(
        offset[1:], torch.arange(reward.numel(), device=reward.device), right=True
    )
    r = reward[order]
    known = ~r.isnan()
    r = torch.where(known, r, 0.0)

    def total(x: Tensor) -> Tensor:
        return torch.zeros_like(reward).index_add(0, group, x)[group]

    n = total(known.to(r.dtype))
    mean = total(r) / n
    # Again, for the rounding of the sum: a group that agrees leaves nothing for eps to magnify.
    mean = mean + total(torch.where(known, r - mean, 0.0)) / n
    centered = torch.where(known & (n > 1), r - mean, 0.0)
    if kind == "normalized":
        variance = total(centered.square()) / (n - ddof).clamp(min=1)
        deviation = variance.sqrt() + eps
        centered = torch.where(deviation > 0, centered / deviation, 0.0)
    elif kind == "leave_one_out":
        centered = centered * n / (n - 1).clamp(min=1)
    return torch.empty_like(reward).index_copy(0, order, centered)
