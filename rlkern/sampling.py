# SPDX-License-Identifier: Apache-2.0
"""Which samples of a batch are trained on, and how often: DAPO's filter, DUPO's refill, length.

All of it but refill_index stays on the device: what varies is a number per sample, not a size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.aggregate import token_weight
from rlkern.backends.eager.group_advantage import group_index
from rlkern.ops import _check as check
from rlkern.ops.group_advantage import group_segments


class _Groups(NamedTuple):
    """One entry per group, ids ascending, and empty ones up to the number of samples."""

    order: Tensor
    offset: Tensor
    of_sample: Tensor
    mixed: Tensor

    @property
    def size(self) -> Tensor:
        return self.offset[1:] - self.offset[:-1]

    @property
    def refilled(self) -> Tensor:
        """Groups that exist and are not mixed: the places to fill."""
        return (self.size > 0) & ~self.mixed


def _groups(op: str, reward: Tensor, group: Tensor) -> _Groups:
    check.tensor(op, "reward", reward, (torch.float32, torch.float64))
    if reward.ndim != 1:
        raise ValueError(f"{op}: reward must be (N,), got {check.describe(reward)}")
    check.like(op, "group", group, reward.shape, reward, check.INTEGERS)
    order, offset = group_segments(group)
    index = group_index(order, offset)
    r = reward.detach()[order]
    unknown = r.isnan()

    def extreme(reduce: str, nothing: float) -> Tensor:
        slots = torch.full_like(r, nothing)
        return slots.scatter_reduce(0, index, torch.where(unknown, nothing, r), reduce)

    mixed = extreme("amax", -torch.inf) > extreme("amin", torch.inf)
    return _Groups(order, offset, torch.empty_like(index).index_copy(0, order, index), mixed)


def mixed_groups(reward: Tensor, group: Tensor) -> Tensor:
    """Returns whether the rewards of each sample's group differ: the samples that DAPO keeps.

        keep_i  where  min over i's group of r < max over i's group of r

    Paper: arXiv 2503.14476, eq. 11 (0 < number of right answers < G). Its dynamic sampling asks for
    new prompts until a batch is full of such groups. The groups where this is False are the
    degenerate ones, whose advantage is 0 by every kind. It is exact: no standard deviation is
    compared with a threshold. TRL keeps degenerate groups, whose tokens then still count in the
    loss's denominator; where shaping makes the rewards of equally right answers differ, give the
    bare accuracy here, as verl's `filter_groups.metric` does.

    One entry per sample and not one per group, for how many groups there are would cost a host
    synchronisation, and a sample's mask is what the loss takes: `mask & mixed[:, None]`.

    Arguments
        reward  (N,) float32 or float64; NaN marks an unscorable answer
        group   (N,) int64 or int32 ids, of any value and in any order
    Returns
        (N,) bool; an unscorable answer shares its group's verdict, and a group with fewer than two
        scorable answers is not mixed
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none

    >>> reward, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    >>> mixed_groups(reward, group).tolist()
    [True, True, False, False]
    """
    groups = _groups("mixed_groups", reward, group)
    return groups.mixed[groups.of_sample]


def _shuffled_first(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Returns all indices, those of the chosen first and in random order."""
    last = 1 << 62
    keys = torch.randint(last, chosen.shape, device=generator.device, generator=generator)
    return torch.argsort(torch.where(chosen, keys.to(chosen.device), last), stable=True)


def _check_generator(op: str, generator: object) -> None:
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{op}: generator must be a torch.Generator, got {check.describe(generator)}"
        )


def refill_multiplicity(reward: Tensor, group: Tensor, *, generator: torch.Generator) -> Tensor:
    """Returns how often each sample counts when DUPO refills a batch: 0 where it is dropped.

        c_g = 1 + ⌊E/S⌋ + [g is among E mod S survivors drawn at random]    for S mixed groups
        c_g = 0                                                            for the E others

    Paper: DUPO, arXiv 2507.02592: the places of groups whose rewards agree are filled by
    duplicating other groups of the same batch, drawn at random, instead of sampling anew. A
    duplicate is a weight: give `multiplicity_weight` to the loss, and no token is computed twice.
    For a single optimizer step that equals training on the copies (`refill_index`).

    What the paper leaves open: the draw is balanced, so no group is duplicated twice before every
    other is once, also where more places are empty than groups survive; where none survives all
    are 0, hence also the weights and the loss, and the step is to be skipped.

    Arguments
        reward     (N,) float32 or float64; NaN marks an unscorable answer
        group      (N,) int64 or int32 ids, of any value and in any order
        generator  draws the groups; one on the CPU draws the same ones for rewards on any device
    Returns
        (N,) int64, equal within a group
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none

    >>> reward, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    >>> refill_multiplicity(reward, group, generator=torch.Generator()).tolist()
    [2, 2, 0, 0]
    """
    op = "refill_multiplicity"
    _check_generator(op, generator)
    groups = _groups(op, reward, group)
    first = _shuffled_first(groups.mixed, generator)
    rank = torch.argsort(first)  # the inverse permutation
    survivors, places = groups.mixed.sum().clamp(min=1), groups.refilled.sum()
    copies = 1 + places // survivors + (rank < places % survivors)
    return torch.where(groups.mixed, copies, 0)[groups.of_sample]


def refill_index(reward: Tensor, group: Tensor, *, generator: torch.Generator) -> Tensor:
    """Returns the samples of a batch that DUPO has refilled by copying, as indices.

    The groups stand in the order of their ids, and in the place of each group whose rewards agree
    stands a mixed one, drawn as `refill_multiplicity` draws it: the same seed copies each sample as
    often as it counts there. So a batch that lay group by group keeps its layout, and the copies
    fall into whatever optimizer steps it is split into. Take advantages before indexing, since the
    copies of a group carry its id:

        advantage, index = group_advantage(reward, group), refill_index(reward, group, ...)
        token, mask, advantage = token[index], mask[index], advantage[index]

    Paper: DUPO, arXiv 2507.02592.

    Arguments
        as refill_multiplicity
    Returns
        (M,) int64; M = N where all groups are of one size; empty where no group is mixed, and the
        step is to be skipped
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none. M is data: on a GPU this waits for the device.

    >>> reward, group = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    >>> refill_index(reward, group, generator=torch.Generator()).tolist()
    [2, 3, 2, 3]
    """
    op = "refill_index"
    _check_generator(op, generator)
    groups = _groups(op, reward, group)
    survivors = _shuffled_first(groups.mixed, generator)[: int(groups.mixed.sum())]
    if not len(survivors):
        return survivors
    places = groups.refilled.nonzero().flatten()
    source = torch.arange(int((groups.size > 0).sum()), device=reward.device)
    source[places] = survivors[torch.arange(len(places), device=reward.device) % len(survivors)]
    size = groups.size[source]
    begin = groups.offset[source] - (size.cumsum(0) - size)
    within = torch.arange(int(size.sum()), device=reward.device)
    return groups.order[within + begin.repeat_interleave(size)]


def multiplicity_weight(
    mask: Tensor,
    multiplicity: Tensor,
    mode: str = "token_mean",
    *,
    count: float | Tensor | None = None,
    constant: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns the weight of each token where each sample counts as often as its multiplicity says.

        weight_t = c_i · token_weight_t,  its count being of c_i copies of each sample i

    The loss under these weights is the loss of the batch in which sample i stands c_i times.

    Arguments
        mask          (B, T) bool, True counts
        multiplicity  (B,) int64 or int32, ≥ 0, as from refill_multiplicity
        mode          as in rlkern.aggregate.token_weight
        count         tokens or sequences of the whole batch, copies included; by default of this
        constant, dtype  as in rlkern.aggregate.token_weight
    Returns
        (B, T) of that dtype; 0 where mask is False or the multiplicity is 0
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> multiplicity_weight(mask, torch.tensor([0, 2])).tolist()
    [[0.0, 0.0], [1.0, 0.0]]
    """
    op = "multiplicity_weight"
    check.tensor(op, "mask", mask, (torch.bool,))
    if mask.ndim != 2:
        raise ValueError(f"{op}: mask must be (B, T), got {check.describe(mask)}")
    check.like(op, "multiplicity", multiplicity, mask.shape[:1], mask, check.INTEGERS)
    copies = multiplicity.unsqueeze(-1)
    if count is None and mode != "token_sum":
        counted = mask if mode == "token_mean" else mask.any(-1, keepdim=True)
        count = (counted * copies).sum()
    kept = mask & (copies > 0)
    return token_weight(kept, mode, count=count, constant=constant, dtype=dtype) * copies


def overlong_penalty(length: Tensor, *, max_length: int, cache: int) -> Tensor:
    """Returns DAPO's soft punishment of answers that come near the longest allowed: −1 to 0.

        0                                   where length ≤ max_length − cache
        (max_length − cache − length)/cache between
        −1                                  where length ≥ max_length

    Paper: arXiv 2503.14476, eq. 13, where max_length is 20 480 and cache 4 096. It is added to the
    reward; verl multiplies it by `overlong_buffer.penalty_factor` first, which is 1 there.

    Arguments
        length      (N,) int64 or int32 tokens of each answer
        max_length  where the punishment is full
        cache       over how many tokens it grows; 0 < cache ≤ max_length
    Returns
        (N,) float32
    Raises
        TypeError, ValueError  for an argument of the wrong dtype or range

    >>> overlong_penalty(torch.tensor([6, 8, 9, 20]), max_length=10, cache=4).tolist()
    [0.0, -0.5, -0.75, -1.0]
    """
    op = "overlong_penalty"
    check.tensor(op, "length", length, check.INTEGERS)
    limit, width = (
        check.number(op, n, x) for n, x in (("max_length", max_length), ("cache", cache))
    )
    if not 0 < width <= limit:
        raise ValueError(f"{op}: cache must be in (0, max_length = {max_length}], got {cache}")
    return ((limit - width - length.float()) / width).clamp(-1.0, 0.0)


def overlong_filter(mask: Tensor, finished: Tensor) -> Tensor:
    """Returns the mask without the answers that were cut off: none of their tokens counts.

    Paper: overlong filtering, arXiv 2503.14476. Their rewards still take part in their group's
    statistics, as with TRL's `mask_truncated_completions`; to leave them out there as well, make
    them NaN.

    Arguments
        mask      (B, T) bool, True counts
        finished  (B,) bool, True where the answer ended by itself
    Returns
        (B, T) bool
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device

    >>> overlong_filter(torch.tensor([[True, False], [True, True]]), torch.tensor([True, False]))
    tensor([[ True, False],
            [False, False]])
    """
    op = "overlong_filter"
    check.tensor(op, "mask", mask, (torch.bool,))
    if mask.ndim != 2:
        raise ValueError(f"{op}: mask must be (B, T), got {check.describe(mask)}")
    check.like(op, "finished", finished, mask.shape[:1], mask, (torch.bool,))
    return mask & finished.unsqueeze(-1)
