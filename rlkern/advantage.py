# SPDX-License-Identifier: Apache-2.0
"""Advantages beyond one reward and its group: formulas over group_advantage, with no kernels.

Statistics of "the batch" are of the rewards given: on several ranks, give those of all of them.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rlkern.aggregate import center, masked_mean, whiten
from rlkern.ops import _check as check
from rlkern.ops.group_advantage import group_advantage
from rlkern.sampling import mixed_groups
from rlkern.token_advantage import gigpo as gigpo
from rlkern.token_advantage import optimal_token_baseline as optimal_token_baseline
from rlkern.token_advantage import win_rate as win_rate

_FLOATS = (torch.float32, torch.float64)


def batch_centered(reward: Tensor, group: Tensor | None = None) -> Tensor:
    """Returns r − mean of the batch: REINFORCE with a constant baseline; groups play no part.

    Arguments
        reward  (N,) float32 or float64; NaN marks an unscorable answer
        group   not looked at
    Returns
        (N,) advantage; 0 for NaN rewards

    >>> batch_centered(torch.tensor([1.0, 0.0, 0.0, 3.0])).tolist()
    [0.0, -1.0, -1.0, 2.0]
    """
    check.tensor("batch_centered", "reward", reward, _FLOATS)
    return group_advantage(reward, torch.zeros_like(reward, dtype=torch.int64), kind="centered")


def batch_normalized(reward: Tensor, group: Tensor, *, eps: float = 1e-4, ddof: int = 1) -> Tensor:
    """Returns (r − mean of its group) / (std of the batch + eps).

    Paper: Lite PPO, arXiv 2508.08221. The std is of the batch's rewards, as they are, with
    TRL's eps and ddof (`scale_rewards="batch"`); compare reinforce_plus_plus_baseline, which
    divides by the std of what the group means leave, counted by tokens. rlkern.batch_normalized
    is another function: it divides rollout corrections by their mean.

    Arguments
        reward, group  as in group_advantage
        eps            ≥ 0
        ddof           0 or 1
    Returns
        (N,) advantage; 0 for NaN rewards and for groups of one or that agree

    >>> reward, group = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1])
    >>> [round(a, 3) for a in batch_normalized(reward, group, eps=0.0, ddof=0).tolist()]
    [1.414, -1.414, 0.0, 0.0]
    """
    centered = group_advantage(reward, group, kind="centered", eps=eps, ddof=ddof)
    known = ~reward.isnan()
    apart = torch.where(known, reward.detach() - masked_mean(reward.detach(), known), 0.0)
    variance = apart.square().sum() / (known.sum() - ddof).clamp(min=1)
    deviation = variance.sqrt() + eps
    return torch.where(deviation > 0, centered / deviation, 0.0)


def gpg(reward: Tensor, group: Tensor) -> Tensor:
    """Returns α·(r − mean of its group), α = samples / samples of groups whose rewards differ.

    Paper: GPG, arXiv 2504.02546, whose α makes up for the samples without gradient. verl's `gpg`
    instead counts the samples whose reward is not 0, and can divide by a further constant.

    Arguments
        reward, group  as in group_advantage
    Returns
        (N,) advantage; all 0 where no group's rewards differ

    >>> reward, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    >>> gpg(reward, group).tolist()
    [1.0, -1.0, 0.0, 0.0]
    """
    centered = group_advantage(reward, group, kind="centered")
    useful = mixed_groups(reward, group).sum().clamp(min=1)
    return centered * (reward.numel() / useful.to(reward.dtype))


def remax(reward: Tensor, greedy_reward: Tensor) -> Tensor:
    """Returns r − reward of the greedy answer to the same prompt.

    Paper: ReMax, arXiv 2310.10505. Costs one greedy rollout per prompt.

    Arguments
        reward         (N,) float32 or float64; NaN marks an unscorable answer
        greedy_reward  (N,) of the same dtype: that of each sample's own prompt
    Returns
        (N,) advantage; 0 where either is NaN
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device

    >>> remax(torch.tensor([1.0, 0.0, torch.nan]), torch.tensor([0.5, 0.5, 0.5])).tolist()
    [0.5, -0.5, 0.0]
    """
    op = "remax"
    check.tensor(op, "reward", reward, _FLOATS)
    check.like(op, "greedy_reward", greedy_reward, reward.shape, reward, (reward.dtype,))
    ahead = reward.detach() - greedy_reward.detach()
    return torch.where(ahead.isnan(), 0.0, ahead)


def gdpo(
    reward: Tensor,
    group: Tensor,
    *,
    weight: Tensor | None = None,
    eps: float = 1e-4,
    ddof: int = 1,
) -> Tensor:
    """Returns the advantage of answers with several rewards, each normalized on its own.

        A_i = Σ_k weight_k · (r_ik − mean_k) / (std_k + eps),  mean and std of i's group
        advantage = (A − mean of the batch) / (std of the batch + eps)

    Paper: GDPO, arXiv 2601.05242. The batch's statistics count answers, as in the paper and TRL
    (`normalize_then_sum`); verl whitens over tokens, so that long answers count more.

    Arguments
        reward  (N, K) float32 or float64; NaN where a reward cannot score an answer, which then
                takes no part in that reward's term
        group   (N,) int64 or int32 ids, of any value and in any order
        weight  (K,) of the same dtype; ones by default
        eps     ≥ 0
        ddof    0 or 1
    Returns
        (N,) advantage; 0 for answers that no reward scores, and for all where A agrees
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device

    >>> reward = torch.tensor([[1.0, 10.0], [0.0, 10.0], [1.0, 30.0], [0.0, 10.0]])
    >>> advantage = gdpo(reward, torch.tensor([0, 0, 1, 1]), eps=0.0, ddof=0)
    >>> [round(a, 4) for a in advantage.tolist()]
    [0.6325, -0.6325, 1.2649, -1.2649]
    """
    op = "gdpo"
    check.tensor(op, "reward", reward, _FLOATS)
    if reward.ndim != 2:
        raise ValueError(f"{op}: reward must be (N, K), got {check.describe(reward)}")
    if weight is not None:
        check.like(op, "weight", weight, reward.shape[1:], reward, (reward.dtype,))
    terms = [group_advantage(r, group, eps=eps, ddof=ddof) for r in reward.unbind(1)]
    total = torch.zeros_like(reward[:, 0])
    for k, term in enumerate(terms):
        total = total + (term if weight is None else weight[k] * term)
    total = torch.where(reward.isnan().all(1), torch.nan, total)
    return group_advantage(total, torch.zeros_like(group), eps=eps, ddof=ddof)


def reinforce_plus_plus(
    reward: Tensor, mask: Tensor, *, kind: str = "normalized", ddof: int = 1
) -> Tensor:
    """Returns the reward of every token, whitened over all counted tokens of the batch.

        A_t = (G_t − mean of G) / √(variance of G + 1e-8)

    Paper: REINFORCE++, arXiv 2501.03262. G is the reward (B,) of each answer, where nothing
    is discounted and the KL is in the loss. With token rewards, such as a KL in the reward, G is
    their return: `reinforce_plus_plus(rlkern.discounted_return(token_reward, mask, ...), mask)`.
    The variance has ddof 1 as in verl; OpenRLHF and NeMo have ddof 0. Kind "centered" is G_t − mean
    of G alone (OpenRLHF's no_std_norm).

    Arguments
        reward  (B,) or (B, T) float32 or float64; NaN marks an unscorable answer
        mask    (B, T) bool, True counts
        kind    normalized or centered
        ddof    0 or 1, for kind normalized
    Returns
        (B, T) advantage; 0 where mask is False and for NaN rewards
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> advantage = reinforce_plus_plus(torch.tensor([1.0, 0.0]), mask)
    >>> [[round(a, 4) for a in row] for row in advantage.tolist()]
    [[0.5774, 0.5774], [-1.1547, 0.0]]
    """
    op = "reinforce_plus_plus"
    check.tensor(op, "reward", reward, _FLOATS)
    check.tensor(op, "mask", mask, (torch.bool,))
    if mask.ndim != 2:
        raise ValueError(f"{op}: mask must be (B, T), got {check.describe(mask)}")
    shape = mask.shape if reward.ndim == 2 else mask.shape[:1]
    check.like(op, "reward", reward, shape, mask, (reward.dtype,))
    rows = reward.detach() if reward.ndim == 2 else reward.detach().unsqueeze(-1).expand(mask.shape)
    if kind not in ("normalized", "centered"):
        raise ValueError(f"{op}: kind must be normalized or centered, got {kind!r}")
    check.ddof(op, ddof)
    known = mask & ~rows.isnan()
    return whiten(rows, known, ddof=ddof) if kind == "normalized" else center(rows, known)


def reinforce_plus_plus_baseline(
    reward: Tensor, group: Tensor, mask: Tensor, *, kind: str = "normalized", ddof: int = 1
) -> Tensor:
    """Returns r − mean of its group at every token, whitened over all counted tokens.

    Paper: REINFORCE++-baseline, arXiv 2501.03262. As verl's estimator of this name: an answer
    counts in the batch's statistics once per token. OpenRLHF's `reinforce_baseline` whitens with
    ddof 0, and what it whitens has the KL of the tokens that follow in it.

    Arguments
        reward, group  as in group_advantage, (B,)
        mask           (B, T) bool, True counts
        kind, ddof     as in reinforce_plus_plus
    Returns
        (B, T) advantage; 0 where mask is False and for NaN rewards
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device

    >>> mask = torch.ones(4, 1, dtype=torch.bool)
    >>> reward, group = torch.tensor([9.0, 7.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1])
    >>> advantage = reinforce_plus_plus_baseline(reward, group, mask)
    >>> [round(a, 4) for a in advantage.flatten().tolist()]
    [1.2247, -1.2247, 0.0, 0.0]
    """
    centered = group_advantage(reward, group, kind="centered")
    known = torch.where(reward.isnan(), torch.nan, centered)
    return reinforce_plus_plus(known, mask, kind=kind, ddof=ddof)


def optimal_value(reward: Tensor, *, temperature: float) -> Tensor:
    """Returns V* of each prompt, estimated from answers of the reference: A*-PO's baseline.

        V* = temperature · log (1/n Σ_i exp(r_i / temperature))

    Between the mean of the rewards (at a high temperature) and their maximum (at a low one).
    Paper: arXiv 2505.20686, where the temperature is β₁; TRL's `a2po` has 1/2 and n = 8.

    Arguments
        reward       (Q, n) float32 or float64, of n answers to each prompt; NaN is left out
        temperature  > 0
    Returns
        (Q,) of the same dtype; NaN where no answer could be scored
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or range

    >>> round(optimal_value(torch.tensor([[1.0, 0.0]]), temperature=0.5).item(), 4)
    0.7169

    log((e² + 1)/2)/2 = 0.7169.
    """
    op = "optimal_value"
    check.tensor(op, "reward", reward, _FLOATS)
    if reward.ndim != 2:
        raise ValueError(f"{op}: reward must be (Q, n), got {check.describe(reward)}")
    if check.number(op, "temperature", temperature) <= 0:
        raise ValueError(f"{op}: temperature must be greater than 0, got {temperature}")
    known = ~reward.isnan()
    scaled = torch.where(known, reward.detach() / temperature, -torch.inf)
    value = temperature * (scaled.logsumexp(1) - known.sum(1).to(reward.dtype).log())
    return torch.where(known.any(1), value, torch.nan)


# Every estimator that needs no more than the reward of each sample and its group, by name.
ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "normalized": partial(group_advantage, kind="normalized"),
    "centered": partial(group_advantage, kind="centered"),
    "leave_one_out": partial(group_advantage, kind="leave_one_out"),
    "max_rl": partial(group_advantage, kind="max_rl"),
    "pass_at_k": partial(group_advantage, kind="pass_at_k"),
    "pass_at_k_normalized": partial(group_advantage, kind="pass_at_k_normalized"),
    "batch_centered": batch_centered,
    "batch_normalized": batch_normalized,
    "gpg": gpg,
    "win_rate": win_rate,
}
