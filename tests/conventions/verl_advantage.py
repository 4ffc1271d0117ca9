# SPDX-License-Identifier: Apache-2.0
"""verl 0.9.1: advantages, the KL in the reward, rollout correction and rejection."""

import math

import torch

from conventions.eager import group_mean, group_std, masked, token_mean, whitened


def at_tokens(x, score):
    return score[:, None] * x.mask


def grpo(reward):
    return (reward - group_mean(reward)) / (group_std(reward) + 1e-6)


def gdpo(x):
    each = [w * grpo(r) for w, r in zip(x.reward_weight, x.rewards.unbind(1))]
    return whitened(at_tokens(x, each[0] + each[1]), x.mask)


def pass_at_k(x):
    advantage = torch.zeros_like(x.reward)
    for begin in (0, 4):
        group = x.reward[begin : begin + 4]
        top, at = torch.topk(group, 2)
        advantage[begin + at[0]] = (top[0] - top[1]) / (group.std() + 1e-6)
    return advantage


def opo(x):
    length, r = x.mask.sum(1).view(2, 4), x.reward.view(2, 4)
    baseline = (length * r).sum(1, keepdim=True) / length.sum(1, keepdim=True)
    return (r - baseline).flatten()


def gae(x):
    """Returns (advantage, return) as verl scans them, before whitening."""
    after, running, found = torch.zeros(8), torch.zeros(8), []
    after, running = after.double(), running.double()
    value = x.value.detach()
    for t in reversed(range(16)):
        here = x.mask[:, t]
        delta = x.token_reward[:, t] + 0.99 * after - value[:, t]
        following = delta + 0.99 * 0.95 * running
        after, running = (
            torch.where(here, value[:, t], after),
            torch.where(here, following, running),
        )
        found.append(running)
    advantage = torch.stack(found[::-1], 1)
    return whitened(advantage, x.mask), masked(advantage + value, x.mask)


def returns(x):
    running, found = torch.zeros(8).double(), []
    for t in reversed(range(16)):
        here = x.mask[:, t]
        running = torch.where(here, x.token_reward[:, t] + 0.99 * running, running)
        found.append(running * here)
    return torch.stack(found[::-1], 1)


def remax(x):
    return x.reward - x.greedy_reward


def optimal_baseline(x):
    to_go = (x.token_reward * x.mask).flip(1).cumsum(1).flip(1)
    energy = ((1 - 2 * x.old.exp() + x.sum_pi_squared) * x.mask).cumsum(1)
    baseline = torch.zeros_like(to_go)
    for rows in (slice(0, 4), slice(4, 8)):
        w = energy[rows] * x.mask[rows]
        baseline[rows] = (to_go[rows] * w).sum(0) / w.sum(0).clamp(min=1e-30)
    return (to_go - baseline) * x.mask


def gpg(x):
    return 8 / torch.count_nonzero(x.reward) * (x.reward - group_mean(x.reward))


def weight(x):
    return torch.exp((x.old - x.rollout).clamp(-20, 20)) * x.mask


def answer_weight(x):
    d = ((x.old - x.rollout) * x.mask).sum(1, keepdim=True).clamp(-20, 20)
    return torch.exp(d) * x.mask


def within(w, low, high):
    return torch.where((w >= low) & (w <= high), w, 0.0)


def divided(x):
    w = weight(x).clamp(max=2.0)
    return w / token_mean(w, x.mask)


def divided_by_answers(x):
    w = answer_weight(x).clamp(max=2.0)
    return w / (w.sum(1) / x.mask.sum(1)).mean()


def half_square(x):
    """Returns k2 of each token."""
    return 0.5 * (x.old - x.rollout).square()


def from_sampler(x):
    """Returns k1 and k3 of each token, which the sampler drew."""
    d = (x.old - x.rollout).clamp(-20, 20)
    return -d, torch.exp(d) - 1 - d


def within_ratios(x, statistic, low, high):
    return x.mask & (statistic >= math.log(low)) & (statistic <= math.log(high))


def answer_sum(x, statistic):
    return (statistic * x.mask).sum(1, keepdim=True)


def answer_average(x, statistic):
    return answer_sum(x, statistic) / x.mask.sum(1, keepdim=True)


def answer_largest(x, statistic):
    return statistic.masked_fill(~x.mask, -torch.inf).amax(1, keepdim=True)


ROWS = {
    'adv_estimator="gae", gamma=0.99, lam=0.95': lambda x: gae(x)[0],
    "the same, the returns": lambda x: gae(x)[1],
    'adv_estimator="grpo"': lambda x: grpo(x.reward),
    "norm_adv_by_std_in_grpo=False": lambda x: x.reward - group_mean(x.reward),
    'adv_estimator="gdpo"': gdpo,
    'adv_estimator="grpo_passk"': pass_at_k,
    'adv_estimator="reinforce_plus_plus", gamma=0.99': lambda x: whitened(returns(x), x.mask),
    'adv_estimator="reinforce_plus_plus_baseline"': lambda x: whitened(
        at_tokens(x, x.reward - group_mean(x.reward)), x.mask
    ),
    'adv_estimator="rloo"': lambda x: x.reward * 4 / 3 - group_mean(x.reward) * 4 / 3,
    'adv_estimator="opo"': opo,
    'adv_estimator="remax"': remax,
    'adv_estimator="gpg"': gpg,
    'adv_estimator="optimal_token_baseline", no zero tail': optimal_baseline,
    "use_kl_in_reward=True, kl_penalty": lambda x: masked(
        x.reward[:, None] * x.last - 0.001 * (x.old - x.ref), x.mask
    ),
    'rollout_is="token", rollout_is_threshold=2.0': lambda x: weight(x).clamp(max=2.0),
    'rollout_is="token", rollout_is_threshold="0.5_5.0"': lambda x: within(weight(x), 0.5, 5.0),
    'rollout_is="sequence", rollout_is_threshold=2.0': lambda x: answer_weight(x).clamp(max=2.0),
    'rollout_is="sequence", rollout_is_threshold="0.5_5.0"': lambda x: within(
        answer_weight(x), 0.5, 5.0
    ),
    "rollout_is_batch_normalize=True": divided,
    'the same, rollout_is="sequence"': divided_by_answers,
    'rollout_rs="token_k2", rollout_rs_threshold="0.45"': lambda x: (
        x.mask & (half_square(x) <= 0.45)
    ),
    'rollout_rs="seq_sum_k2", rollout_rs_threshold="0.45"': lambda x: (
        x.mask & (answer_sum(x, half_square(x)) <= 0.45)
    ),
    'rollout_rs="seq_mean_k2", rollout_rs_threshold="0.25"': lambda x: (
        x.mask & (answer_average(x, half_square(x)) <= 0.25)
    ),
    'rollout_rs="seq_max_k2", rollout_rs_threshold="0.45"': lambda x: (
        x.mask & (answer_largest(x, half_square(x)) <= 0.45)
    ),
    'rollout_rs="token_k1", rollout_rs_threshold="0.9_1.5"': lambda x: within_ratios(
        x, from_sampler(x)[0], 0.9, 1.5
    ),
    'rollout_rs="seq_sum_k1", rollout_rs_threshold="0.9_1.5"': lambda x: within_ratios(
        x, answer_sum(x, from_sampler(x)[0]), 0.9, 1.5
    ),
    'rollout_rs="seq_mean_k1", rollout_rs_threshold="0.95_1.2"': lambda x: within_ratios(
        x, answer_average(x, from_sampler(x)[0]), 0.95, 1.2
    ),
    'rollout_rs="token_k3", rollout_rs_threshold="0.35"': lambda x: (
        x.mask & (from_sampler(x)[1] <= 0.35)
    ),
    'rollout_rs="seq_sum_k3", rollout_rs_threshold="0.39"': lambda x: (
        x.mask & (answer_sum(x, from_sampler(x)[1]) <= 0.39)
    ),
    'rollout_rs="seq_mean_k3", rollout_rs_threshold="0.25"': lambda x: (
        x.mask & (answer_average(x, from_sampler(x)[1]) <= 0.25)
    ),
    'rollout_rs="seq_max_k3", rollout_rs_threshold="0.35"': lambda x: (
        x.mask & (answer_largest(x, from_sampler(x)[1]) <= 0.35)
    ),
    "rollout_corr/chi2_token": lambda x: (
        token_mean(torch.exp(x.old - x.rollout).square(), x.mask) - 1.0
    ),
}
