# SPDX-License-Identifier: Apache-2.0
"""The operations group_segments and group_advantage: rewards compared within their group."""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.backends.eager.group_advantage import KINDS
from rlkern.ops import _check as check
from rlkern.ops._library import number_tensor, register


def _segments_kernel(group):
    # Backends are chosen by the dtype of numbers, and ids are none.
    return implementation("group_segments", group.new_empty(0, dtype=torch.float32))(group)


_segments = register(
    "group_segments(Tensor group) -> (Tensor, Tensor)",
    _segments_kernel,
    lambda group: (torch.empty_like(group), group.new_empty(group.shape[0] + 1)),
)


def _advantage_kernel(reward, order, offset, kind, eps, ddof, length=None):
    serve = implementation("group_advantage", reward)
    return serve(reward, order, offset, kind, eps.item(), ddof, length)


_advantage = register(
    "group_advantage(Tensor reward, Tensor order, Tensor offset, str kind, Tensor eps, int ddof,"
    " Tensor? length=None) -> Tensor",
    _advantage_kernel,
    lambda reward, *rest: torch.empty_like(reward),
)


def group_segments(group: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (order, offset): indices group by group, ids ascending, and where each group begins.

    offset has one entry more than there are members; the groups that do not exist are empty and
    lie at the end. Knowing how many there are would cost a host synchronisation.

    Arguments
        group   (N,) int64 or int32 ids, of any value and in any order
    Returns
        order   (N,) int64; members of a group keep their order
        offset  (N + 1,) int64
    Raises
        TypeError, ValueError  for ids of another dtype or shape
    Gradient
        none: both are indices

    >>> order, offset = group_segments(torch.tensor([7, 3, 7]))
    >>> order.tolist(), offset.tolist()
    ([1, 0, 2], [0, 1, 3, 3])
    """
    op = "group_segments"
    check.tensor(op, "group", group, check.INTEGERS)
    if group.ndim != 1:
        raise ValueError(f"{op}: group must be (N,), got {check.describe(group)}")
    return _segments(group.to(torch.int64).contiguous())


def group_advantage(
    reward: Tensor,
    group: Tensor,
    *,
    kind: str = "normalized",
    eps: float = 1e-4,
    ddof: int = 1,
    length: Tensor | None = None,
) -> Tensor:
    """Returns the advantage of each reward relative to its group.

        normalized            (r − mean) / (std + eps)           GRPO, arXiv 2402.03300 §4.1.2
        centered              r − mean                           Dr. GRPO, arXiv 2503.20783 §3.2
        leave_one_out         r − mean of the others             RLOO, arXiv 2402.14740 §3.2
        length_weighted       r − Σ length·r / Σ length          OPO, arXiv 2505.23585
        max_rl                (r − mean) / mean; 0 if mean ≤ 0   MaxRL, arXiv 2602.02710
        pass_at_k             max r − max of the others          arXiv 2503.19595
        pass_at_k_normalized  the same / (std + eps)             as verl computes pass_at_k

    Of pass_at_k only the best answer gets its formula, which is by how much the objective, the
    best of the group, would fall without it; the others get 0, and so do all where two are best.

    The variance is divided by n − ddof, and eps is added to its root. ddof = 1, eps = 1e-4 is TRL's
    convention; verl and NeMo add 1e-6, OpenRLHF 1e-9, TorchRL clamps the std from below. max_rl
    expects rewards that are not negative. Estimators over several rewards, over the whole batch or
    with a baseline from elsewhere are in rlkern.advantage.

    A group of one, and a group that agrees, get 0 by every kind, also with eps = 0. verl leaves a
    group of one its raw reward, by every estimator but `rloo_vectorized`, which gives 0, and
    `grpo_passk`, which refuses. NaN rewards count in no statistic: the group is smaller.

    Arguments
        reward  (N,) float32 or float64; NaN marks an unscorable answer
        group   (N,) int64 or int32 ids, of any value and in any order
        kind    one of the seven
        eps     ≥ 0, where a deviation divides
        ddof    0 or 1
        length  (N,) int64 or int32 tokens of each answer, for length_weighted and only there; a
                group without tokens falls back to its plain mean
    Returns
        (N,) advantage; 0 for NaN rewards
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none: advantages are constants

    >>> reward, group = torch.tensor([1.0, 0.0, 0.0, 5.0]), torch.tensor([0, 0, 1, 1])
    >>> group_advantage(reward, group, kind="leave_one_out").tolist()
    [1.0, -1.0, -5.0, 5.0]
    >>> length = torch.tensor([3, 1, 2, 2])
    >>> group_advantage(reward, group, kind="length_weighted", length=length).tolist()
    [0.25, -0.75, -2.5, 2.5]
    >>> group_advantage(reward, group, kind="max_rl").tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    op = "group_advantage"
    check.tensor(op, "reward", reward, (torch.float32, torch.float64))
    if reward.ndim != 1:
        raise ValueError(f"{op}: reward must be (N,), got {check.describe(reward)}")
    check.like(op, "group", group, reward.shape, reward, check.INTEGERS)
    if kind not in KINDS:
        raise ValueError(f"{op}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    check.ddof(op, ddof)
    eps = check.number(op, "eps", eps)
    if eps < 0:
        raise ValueError(f"{op}: eps must be at least 0, got {eps}")
    check.finite_values(op, "reward", reward, ~reward.isnan())
    if length is not None:
        check.like(op, "length", length, reward.shape, reward, check.INTEGERS)
    if (length is None) == (kind == "length_weighted"):
        given = "None" if length is None else check.describe(length)
        raise ValueError(
            f"{op}: length belongs to kind 'length_weighted', got {given} for {kind!r}"
        )
    weight = None if length is None else length.to(reward.dtype).contiguous()
    order, offset = _segments(group.to(torch.int64).contiguous())
    rows = (reward.detach().contiguous(), order, offset)
    return _advantage(*rows, kind, number_tensor([eps]), ddof, weight)
