# SPDX-License-Identifier: Apache-2.0
"""Eager definition of groups and of group-relative advantages."""

import torch
from torch import Tensor

KINDS = (
    "normalized",
    "centered",
    "leave_one_out",
    "length_weighted",
    "max_rl",
    "pass_at_k",
    "pass_at_k_normalized",
)


def group_segments(group: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (order, offset): indices group by group, ids ascending, and where each group begins.

    offset has one entry more than there are members; the groups that do not exist are empty and
    lie at the end. Knowing how many there are would cost a host synchronisation.
    """
    sorted_group, order = torch.sort(group, stable=True)
    is_new = torch.ones_like(group)
    is_new[1:] = sorted_group[1:] != sorted_group[:-1]
    dense = is_new.cumsum(0) - 1
    bounds = torch.arange(group.numel() + 1, device=group.device)
    return order, torch.searchsorted(dense, bounds)


def group_index(order: Tensor, offset: Tensor) -> Tensor:
    """Returns for each entry of order the number of its group, 0 for the smallest id."""
    at = torch.arange(order.numel(), device=order.device)
    return torch.searchsorted(offset[1:], at, right=True)


def _lead(r: Tensor, known: Tensor, group: Tensor) -> Tensor:
    """Returns what the best member of a group is ahead of its next, 0 for every other member."""

    def best(x: Tensor) -> Tensor:
        return torch.full_like(r, -torch.inf).scatter_reduce(0, group, x, "amax")[group]

    top = best(torch.where(known, r, -torch.inf))
    leads = known & (r == top)
    tied = torch.zeros_like(group).index_add(0, group, leads.long())[group]
    second = best(torch.where(known & (r < top), r, -torch.inf))
    return torch.where(leads & (tied == 1), r - second, 0.0)


def group_advantage(
    reward: Tensor,
    order: Tensor,
    offset: Tensor,
    kind: str,
    eps: float,
    ddof: int,
    length: Tensor | None = None,
) -> Tensor:
    """Returns the advantage of each reward within its group.

    order lists the rewards group by group; group i is order[offset[i]:offset[i+1]].
    normalized            (r − mean) / (std + eps), the variance divided by n − ddof
    centered              r − mean
    leave_one_out         r − mean of the others = n/(n−1) · (r − mean)
    length_weighted       r − Σ length·r / Σ length; the mean where all lengths are 0
    max_rl                (r − mean) / mean, 0 where the mean is not positive
    pass_at_k             max r − max of the others: 0 for all but the single best
    pass_at_k_normalized  the same / (std + eps)
    NaN rewards are excluded from the statistics and get 0, as do the members of a group that
    agrees, also with eps = 0, and the only member of a group.
    """
    group = group_index(order, offset)
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
    advantage = centered
    if kind == "leave_one_out":
        advantage = centered * n / (n - 1).clamp(min=1)
    elif kind == "length_weighted" and length is not None:
        weight = torch.where(known, length[order], 0.0)
        tokens = total(weight)
        # Relative to the mean, so that a group that agrees stays at exactly 0.
        shift = torch.where(tokens > 0, total(weight * centered) / tokens, 0.0)
        advantage = torch.where(known, centered - shift, 0.0)
    elif kind == "max_rl":
        advantage = torch.where(mean > 0, centered / mean, 0.0)
    elif kind.startswith("pass_at_k"):
        advantage = torch.where(n > 1, _lead(r, known, group), 0.0)
    if kind.endswith("normalized"):
        deviation = (total(centered.square()) / (n - ddof).clamp(min=1)).sqrt() + eps
        advantage = torch.where(deviation > 0, advantage / deviation, 0.0)
    return torch.empty_like(reward).index_copy(0, order, advantage)
