# SPDX-License-Identifier: Apache-2.0
"""Advantages of tokens, of steps and of ranks: formulas that rlkern.advantage offers too."""

import torch
from torch import Tensor

from rlkern.backends.eager.group_advantage import group_index
from rlkern.ops import _check as check
from rlkern.ops.group_advantage import group_advantage, group_segments
from rlkern.ops.reverse_scan import reverse_scan

_FLOATS = (torch.float32, torch.float64)


def dense_index(group: Tensor) -> Tensor:
    """Returns the group (N,) of each sample as a number from 0 on, ascending as the ids do.

    >>> dense_index(torch.tensor([7, 3, 7])).tolist()
    [1, 0, 1]
    """
    order, offset = group_segments(group)
    return torch.empty_like(order).index_copy(0, order, group_index(order, offset))


def optimal_token_baseline(
    token_reward: Tensor,
    group: Tensor,
    logprob: Tensor,
    sum_pi_squared: Tensor,
    mask: Tensor,
    *,
    correction: Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """Returns the reward to go of each token minus the baseline of its group at that position.

        A_t = G_t − B_t        B_t = Σ_i G_it·W_it / (Σ_i W_it + eps)
        W_t = Σ_{j≤t} (1 − 2·π_j + Σ_v π_jv²)·correction_j²        G_t = Σ_{k≥t} reward_k

    B_t is the baseline of least variance if an answer's gradient is as long as W_t says: the
    squared length of the softmax's gradient, summed over the tokens so far. Paper: OTB,
    arXiv 2602.07078. Sums are over the answers of a group that count at position t, as in verl's
    `optimal_token_baseline` with `handle_zero_tail=False`: a token that no other answer reaches
    gets 0. verl's default is True, which leaves it its return, as verl leaves a group of one its
    return; here that gets 0, as everywhere.

    Arguments
        token_reward    (B, T) float32 or float64; an answer with a NaN where mask is True takes no
                        part in its group and gets 0
        group           (B,) int64 or int32 ids, of any value and in any order
        logprob         (B, T) float  log π of the tokens
        sum_pi_squared  (B, T) float  Σ_v π_v², which rlkern.token_logprob returns
        mask            (B, T) bool, True counts
        correction      (B, T) float  rollout correction of the loss, ones by default
        eps             ≥ 0
    Returns
        (B, T) advantage of token_reward's dtype; 0 where mask is False
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none

    >>> reward, half = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.full((2, 2), 0.5).log()
    >>> squares, mask = torch.tensor([[0.5, 0.5], [0.5, 1.0]]), torch.ones(2, 2).bool()
    >>> advantage = optimal_token_baseline(reward, torch.tensor([0, 0]), half, squares, mask)
    >>> [[round(a, 4) for a in row] for row in advantage.tolist()]
    [[0.5, 0.6], [-0.5, -0.4]]

    W is 0.5 and 1 in the first answer, 0.5 and 1.5 in the second: the baselines are
    1·0.5/(0.5 + 0.5) and 1·1/(1 + 1.5).
    """
    op = "optimal_token_baseline"
    check.tensor(op, "token_reward", token_reward, _FLOATS)
    if token_reward.ndim != 2:
        raise ValueError(f"{op}: token_reward must be (B, T), got {check.describe(token_reward)}")
    shape = token_reward.shape
    check.like(op, "group", group, shape[:1], token_reward, check.INTEGERS)
    check.like(op, "mask", mask, shape, token_reward, (torch.bool,))
    given = {"logprob": logprob, "sum_pi_squared": sum_pi_squared}
    if correction is not None:
        given["correction"] = correction
    for name, x in given.items():
        check.like(op, name, x, shape, token_reward, check.FLOATS)
    if check.number(op, "eps", eps) < 0:
        raise ValueError(f"{op}: eps must be at least 0, got {eps}")
    known = mask & ~(mask & token_reward.isnan()).any(-1, keepdim=True)

    def counted(x: Tensor) -> Tensor:
        return torch.where(known, x.detach().to(token_reward.dtype), 0.0)

    # Rounding can leave a certain token, whose gradient is 0, a little below it.
    length = (1 - 2 * counted(logprob).exp() + counted(sum_pi_squared)).clamp(min=0)
    if correction is not None:
        length = length * counted(correction).square()
    weight = torch.where(known, counted(length).cumsum(-1), 0.0)
    rewards = counted(token_reward)
    to_go = reverse_scan(rewards, torch.ones_like(rewards))
    index = dense_index(group)

    def of_group(x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, index, x)[index]

    baseline = of_group(to_go * weight) / (of_group(weight) + eps)
    alone = of_group(known.to(weight.dtype)) < 2
    return torch.where(known & ~alone, to_go - baseline, 0.0)


def gigpo(
    reward: Tensor,
    group: Tensor,
    step_return: Tensor,
    observation: Tensor,
    answer: Tensor,
    *,
    step_coef: float = 1.0,
    kind: str = "normalized",
    eps: float = 1e-4,
) -> Tensor:
    """Returns the advantage of each step of each answer: of its answer, plus of the step itself
    among the steps of its group that were taken at the same observation.

        A = A_answer + step_coef·A_step
        A_answer  group_advantage of the answers' rewards within their group
        A_step    group_advantage of the steps' returns within (group, observation)

    Paper: GiGPO, arXiv 2505.10978, §4, whose ω is step_coef = 1 and whose returns have a discount
    of 0.95 per step. F_norm is the deviation (kind "normalized") or 1 ("centered"); verl-agent
    offers both. A step whose observation nobody else saw has A_step = 0. Steps are flat; spread the
    result over their tokens by indexing with the step of each token. The trainer has no algorithm
    of this name, because its rows do not say which observation a token answers.

    Arguments
        reward       (N,) float32 or float64 of the answers; NaN marks an unscorable one
        group        (N,) int64 or int32 ids: the prompt of each answer
        step_return  (S,) of the same dtype: rewards from this step on, discounted; NaN is left out
        observation  (S,) int64 or int32 ids: equal where the environment looked the same; ids of
                     other groups may be equal too
        answer       (S,) int64 or int32 index of each step's answer, 0 to N − 1
        step_coef    ≥ 0
        kind, eps    as in rlkern.group_advantage
    Returns
        (S,) advantage of the steps
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none

    >>> reward, group = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
    >>> answer, seen = torch.tensor([0, 0, 1, 1]), torch.tensor([5, 6, 5, 7])
    >>> to_go = torch.tensor([1.0, 1.0, 0.0, 0.0])
    >>> gigpo(reward, group, to_go, seen, answer, kind="centered").tolist()
    [1.0, 0.5, -1.0, -0.5]

    Both answers begin at observation 5, which adds ±0.5; what they see next is theirs alone.
    """
    op = "gigpo"
    check.tensor(op, "step_return", step_return, (reward.dtype,))
    if step_return.ndim != 1:
        raise ValueError(f"{op}: step_return must be (S,), got {check.describe(step_return)}")
    for name, x in {"observation": observation, "answer": answer}.items():
        check.like(op, name, x, step_return.shape, step_return, check.INTEGERS)
    coef = check.number(op, "step_coef", step_coef)
    if coef < 0:
        raise ValueError(f"{op}: step_coef must be at least 0, got {step_coef}")
    of_answer = group_advantage(reward, group, kind=kind, eps=eps)
    steps = max(1, step_return.numel())
    both = dense_index(group)[answer] * steps + dense_index(observation)
    of_step = group_advantage(step_return, both, kind=kind, eps=eps)
    return of_answer[answer] + coef * of_step


def win_rate(reward: Tensor, group: Tensor) -> Tensor:
    """Returns the share of the others of its group that an answer beats, minus 1/2.

        (others with a smaller r + ½·others with an equal r) / others − 1/2

    The order of the rewards counts and not their size, so an outlier cannot decide, and any rising
    function of the reward gives the same. The mean over a group is 0.

    Arguments
        reward, group  as in group_advantage
    Returns
        (N,) advantage in [−1/2, 1/2]; 0 for NaN rewards, which nobody beats, and for groups of one

    >>> reward, group = torch.tensor([3.0, 1.0, 1.0, 9.0]), torch.tensor([0, 0, 0, 1])
    >>> win_rate(reward, group).tolist()
    [0.5, -0.25, -0.25, 0.0]
    """
    op = "win_rate"
    check.tensor(op, "reward", reward, _FLOATS)
    check.like(op, "group", group, reward.shape, reward, check.INTEGERS)
    reward, index = reward.detach(), dense_index(group)
    first = reward.argsort(stable=True)  # NaN last
    order = first[index[first].argsort(stable=True)]
    r, g, place = reward[order], index[order], torch.arange(reward.numel(), device=reward.device)
    other_group = torch.cat([g[:1] == g[:1], g[1:] != g[:-1]])
    new = torch.cat([other_group[:1], other_group[1:] | (r[1:] != r[:-1])])
    begins, ties = (torch.where(x, place, 0).cummax(0).values for x in (other_group, new))
    run = new.cumsum(0) - 1
    equal = torch.zeros_like(place).index_add(0, run, torch.ones_like(place))[run]
    known = ~r.isnan()
    others = torch.zeros_like(place).index_add(0, g, known.long())[g] - 1
    share = (ties - begins + (equal - 1) / 2).to(reward.dtype) / others.clamp(min=1)
    advantage = torch.where(known & (others > 0), share - 0.5, 0.0)
    return torch.empty_like(advantage).index_copy(0, order, advantage)
