# SPDX-License-Identifier: Apache-2.0
"""TRL 1.16: GRPO and RLOO."""

import math

import torch

from conventions.eager import (
    answer_mean,
    answer_ratio,
    cross_entropy,
    group_mean,
    group_std,
    k3,
    masked,
    ratio,
    soft_gate,
    surrogate,
    token_mean,
    total,
)

ALL = 64  # num_items_in_batch: completion tokens of the whole generation batch


def clipped(x, low=0.2, high=0.2):
    return surrogate(ratio(x), x.advantage[:, None], low, high)


def cispo(x):
    weight = ratio(x).clamp(max=5.0).detach()
    return total(-weight * x.advantage[:, None] * x.logprob, x.mask) / ALL


def luspo(x):
    loss = surrogate(answer_ratio(x, x.mask), x.advantage[:, None], 2e-3, 2.5e-3)
    return (loss * x.mask).sum(-1).mean()


def gamma_weighted(x, log_ratio):
    """VESPO: the loss of each token, given log W of each answer, (B, 1)."""
    advantage = x.advantage[:, None]
    k, rate = torch.where(advantage >= 0, 2.0, 3.0), torch.where(advantage >= 0, 3.0, 2.0)
    log_w = log_ratio.detach().clamp(math.log(1e-8), 20.0)
    phi = torch.exp(rate + k * log_w - rate * log_w.exp())
    return total(-phi * advantage * x.logprob, x.mask) / ALL


def vespo(x):
    d = (x.logprob - x.old).clamp(-20, 20)
    return gamma_weighted(x, (d * x.mask).sum(1, keepdim=True))


def vespo_corrected(x):
    d = (x.logprob - x.old).clamp(-20, 20) + torch.log(truncated(x))
    return gamma_weighted(x, (d * x.mask).sum(1, keepdim=True))


def two_sided(x):
    r, advantage = ratio(x), x.advantage[:, None]
    near = r.clamp(0.8, 1.2)
    return token_mean(-torch.min(r.clamp(max=4.0) * advantage, near * advantage), x.mask)


def corrected_divergence(x):
    return answer_mean(clipped(x) + 0.04 * k3(x) * ratio(x), x.mask)


def high_entropy(x):
    threshold = torch.quantile(x.entropy.detach()[x.mask], 1 - 0.2)
    kept = x.entropy.detach() >= threshold
    return total(clipped(x, high=0.28) * kept + 0.04 * k3(x), x.mask) / ALL


def kept_answers(x):
    behind = ((x.rollout - x.logprob.detach()) * x.mask).sum(1) / x.mask.sum(1)
    kept = (x.advantage >= 0) | (behind <= 1.2)
    return answer_mean(clipped(x) * kept[:, None] + 0.04 * k3(x), x.mask)


def truncated(x):
    return torch.exp(x.old - x.rollout).clamp(max=3.0)


def answer_weight(x):
    d = ((x.old - x.rollout) * x.mask).sum(1, keepdim=True)
    return torch.exp(d).expand_as(x.old)


def within(w, low, high):
    return w.masked_fill((w < low) | (w > high), 0.0)


def corrected(x):
    weight = within(answer_weight(x), -math.inf, 3.0)
    return answer_mean(clipped(x) * weight + 0.04 * k3(x), x.mask)


def group(reward):
    return torch.nan_to_num((reward - group_mean(reward)) / (group_std(reward) + 1e-4))


def normalize_then_sum(x):
    each = [group(r) for r in x.rewards.unbind(1)]
    reward = (torch.stack(each, 1) * x.reward_weight).sum(1)
    return (reward - reward.mean()) / (reward.std() + 1e-4)


def clip_ratio(x, held):
    return (held * x.mask).double().sum() / x.mask.sum()


def geometric(x):
    d, sign = x.logprob - x.old, torch.sign(x.advantage)[:, None]
    near = d.clamp(-0.4, 0.4)
    held = torch.where(sign >= 0, torch.minimum(d, near), torch.maximum(d, near))
    coefficient = torch.exp((held * x.mask).sum(1) / x.mask.sum(1))
    return (-coefficient * x.advantage).mean()


def leave_one_out(reward):
    grouped = reward.view(-1, 4)
    baseline = (grouped.sum(1, keepdim=True) - grouped) / 3
    return (grouped - baseline).flatten()


def rloo_advantage(x):
    kl = ((x.old - x.ref) * x.mask).sum(1)
    return leave_one_out(x.reward - 0.05 * kl)


def rloo_normalized(x):
    advantage = leave_one_out(x.reward)
    return (advantage - advantage.mean()) / (advantage.std() + 1e-4)


def rloo(x):
    r = torch.exp(((x.logprob - x.old) * x.mask).sum(1))
    return surrogate(r, x.advantage, 0.2, 0.2).mean()


def regression(x):
    implicit = 1e-3 * ((x.logprob - x.ref) * x.mask).sum(1)
    return (implicit - x.advantage).square().mean()


ROWS = {
    'loss_type="grpo"': lambda x: answer_mean(clipped(x), x.mask),
    'loss_type="grpo", empty completions': lambda x: answer_mean(clipped(x), x.sparse),
    'loss_type="bnpo"': lambda x: token_mean(clipped(x), x.mask),
    'loss_type="dapo", epsilon_high=0.28, num_items_in_batch=64': lambda x: (
        total(clipped(x, high=0.28), x.mask) / ALL
    ),
    "num_items_in_batch=64 of num_processes=2": lambda x: (
        total(clipped(x, high=0.28), x.mask) / (ALL / 2)
    ),
    'loss_type="dr_grpo", max_completion_length=32': lambda x: (
        total(clipped(x), x.mask) / (len(x.mask) * 32)
    ),
    'loss_type="cispo", epsilon_high=5.0': cispo,
    'loss_type="sapo"': lambda x: answer_mean(
        soft_gate(ratio(x), x.advantage[:, None], 1.0, 1.05), x.mask
    ),
    'the same, importance_sampling_level="sequence", SAPO': lambda x: answer_mean(
        soft_gate(answer_ratio(x, x.mask), x.advantage[:, None], 1.0, 1.05), x.mask
    ),
    'loss_type="luspo", importance_sampling_level="sequence"': luspo,
    'the same, importance_sampling_level="token"': lambda x: (
        (clipped(x, 2e-3, 2.5e-3) * x.mask).sum(-1).mean()
    ),
    'loss_type="vespo"': vespo,
    'loss_type="vespo", vllm_importance_sampling_mode="token_truncate"': vespo_corrected,
    'importance_sampling_level="sequence"': lambda x: answer_mean(
        surrogate(answer_ratio(x, x.mask), x.advantage[:, None], 3e-4, 4e-4), x.mask
    ),
    "delta=4.0": two_sided,
    "beta=0.04": lambda x: answer_mean(clipped(x) + 0.04 * k3(x), x.mask),
    "use_bias_correction_kl=True": corrected_divergence,
    'the same, importance_sampling_level="sequence"': lambda x: answer_mean(
        surrogate(answer_ratio(x, x.mask), x.advantage[:, None], 3e-4, 4e-4)
        + 0.04 * k3(x) * answer_ratio(x, x.mask),
        x.mask,
    ),
    'entropy_coef=0.01, loss_type="bnpo"': lambda x: (
        token_mean(clipped(x), x.mask) - 0.01 * token_mean(x.entropy, x.mask)
    ),
    'entropy_coef=0.01, loss_type="grpo"': lambda x: (
        answer_mean(clipped(x), x.mask) - 0.01 * token_mean(x.entropy, x.mask)
    ),
    "top_entropy_quantile=0.2": high_entropy,
    "off_policy_mask_threshold=1.2": kept_answers,
    'vllm_importance_sampling_mode="token_truncate"': lambda x: masked(truncated(x), x.mask),
    "the same, vllm_importance_sampling_clip_min=0.8": lambda x: masked(
        torch.exp(x.old - x.rollout).clamp(0.8, 3.0), x.mask
    ),
    "the same, a NaN of vLLM": lambda x: masked(
        torch.exp(torch.nan_to_num((x.old - x.patchy) * x.mask, nan=0.0)).clamp(max=3.0), x.mask
    ),
    'vllm_importance_sampling_mode="token_mask"': lambda x: masked(
        within(torch.exp(x.old - x.rollout), 0.5, 1.5), x.mask
    ),
    'vllm_importance_sampling_mode="sequence_truncate"': lambda x: masked(
        answer_weight(x).clamp(max=1.5), x.mask
    ),
    'vllm_importance_sampling_mode="sequence_mask"': lambda x: masked(
        within(answer_weight(x), -math.inf, 3.0), x.mask
    ),
    "vllm_importance_sampling_correction=True": corrected,
    'scale_rewards="group"': lambda x: group(x.reward),
    'scale_rewards="batch"': lambda x: (x.reward - group_mean(x.reward)) / (x.reward.std() + 1e-4),
    'scale_rewards="none"': lambda x: x.reward - group_mean(x.reward),
    "a reward function that returns None": lambda x: group(x.unscorable),
    'multi_objective_aggregation="sum_then_normalize"': lambda x: group(
        (x.rewards * x.reward_weight).sum(1)
    ),
    'multi_objective_aggregation="normalize_then_sum"': normalize_then_sum,
    "mask_truncated_completions=True": lambda x: x.mask & x.finished[:, None],
    "temperature=0.7": lambda x: masked(cross_entropy(x, x.logits / 0.7), x.mask),
    "clip_ratio/low_mean": lambda x: clip_ratio(
        x, (ratio(x).detach() < 0.8) & (x.advantage[:, None] < 0)
    ),
    "clip_ratio/high_mean": lambda x: clip_ratio(
        x, (ratio(x).detach() > 1.2) & (x.advantage[:, None] > 0)
    ),
    "GMPOTrainer, epsilon=0.4": geometric,
    "RLOO: beta=0.05": rloo_advantage,
    "RLOO: normalize_advantages=True": rloo_normalized,
    "RLOO: reward_clip_range=(-1.0, 1.0)": lambda x: leave_one_out(x.reward.clamp(-1.0, 1.0)),
    "RLOO: epsilon=0.2": rloo,
    "A2PO: beta1=0.5": lambda x: (
        0.5 * (torch.logsumexp(x.reward.view(2, 4) / 0.5, 1) - math.log(4))
    ),
    "A2PO: beta2=1e-3": regression,
}
