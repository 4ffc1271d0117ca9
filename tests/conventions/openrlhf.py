# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF 0.11.2: PolicyLoss, KL, ValueLoss, advantages, DPO, reward models."""

import torch
from torch.nn.functional import logsigmoid

from conventions.eager import (
    answer_ratio,
    dual_clipped,
    group_mean,
    group_std,
    masked,
    surrogate,
    token_mean,
    total,
)


def ratio(x):
    return torch.exp((x.logprob - x.old).clamp(-20, 20))


def ppo(x, low=0.2, high=0.2):
    return surrogate(ratio(x), x.token_advantage, low, high)


def stale_ppo(x):
    r = torch.exp((x.logprob - x.stale).clamp(-20, 20))
    return token_mean(surrogate(r, x.token_advantage, 0.2, 0.2), x.mask)


def mean_of_answers(loss, mask):
    """Returns the mean over the answers that have a token of their means over tokens."""
    count = mask.sum(1)
    return ((loss * mask).sum(1)[count > 0] / count[count > 0]).mean()


def gspo(x):
    s = answer_ratio(x, x.mask) * x.mask
    return mean_of_answers(surrogate(s, x.token_advantage, 3e-4, 4e-4), x.mask)


def gspo_of_sampler(x):
    d = ((x.logprob - x.rollout) * x.mask).sum(1, keepdim=True) / x.mask.sum(1, keepdim=True)
    return mean_of_answers(surrogate(torch.exp(d), x.token_advantage, 3e-4, 4e-4), x.mask)


def importance(x):
    return torch.exp(x.old - x.rollout)


def kept(statistic, low, high, x):
    return torch.where((statistic >= low) & (statistic <= high), importance(x), 0.0)


def geometric(x):
    d = ((x.old - x.rollout) * x.mask).sum(1, keepdim=True) / x.mask.sum(1, keepdim=True)
    return torch.exp(d)


def corrected(x, coefficient):
    return token_mean(coefficient * ppo(x), x.mask)


def probabilities(x):
    return (y.exp().clamp(1e-6, 1 - 1e-6) for y in (x.rollout, x.old))


def gated_by_variation(x):
    p, q = probabilities(x)
    return corrected(x, kept((p - q).abs(), 0.0, 0.1, x))


def gated_by_answer_kl(x):
    p, q = probabilities(x)
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    mean = (kl * x.mask).sum(1, keepdim=True) / x.mask.sum(1, keepdim=True)
    return corrected(x, kept(mean, 0.0, 0.05, x))


def d(x, ref=None):
    return x.logprob - (x.ref if ref is None else ref)


def k3(x, ref=None):
    bounded = d(x, ref).clamp(min=-10)
    return torch.exp(-bounded) - 1 + bounded


def with_kl(x, value):
    return token_mean(ppo(x), x.mask) + 0.01 * token_mean(value.clamp(-10, 10), x.mask)


def unbiased(x):
    """unbiased_gradient on policy: the value of k3, the gradient of k2."""
    half_square = 0.5 * d(x).square()
    value = k3(x).clamp(-10, 10).detach() + half_square - half_square.detach()
    return -token_mean(x.token_advantage * x.logprob, x.mask) + 0.01 * token_mean(value, x.mask)


def clipped_value(x):
    near = x.old_value + (x.value - x.old_value).clamp(-0.5, 0.5)
    return 0.5 * token_mean(
        torch.max((near - x.target).square(), (x.value - x.target).square()), x.mask
    )


def normalized(x, advantage):
    """Returns the advantages whitened over the batch's tokens, of n, at counted tokens."""
    mean = total(advantage, x.mask) / x.mask.sum()
    variance = total((advantage - mean).square(), x.mask) / x.mask.sum()
    return masked((advantage - mean) * variance.clamp(min=1e-8).rsqrt(), x.mask)


def rewards(x, reward):
    """Returns −0.01·KL at each token, and the reward of the answer at its last."""
    last = x.mask.shape[1] - 1 - x.mask.long().flip(1).argmax(1, keepdim=True)
    token_kl = (x.old - x.ref).clamp(-10, 10)
    return torch.zeros_like(x.old).scatter(1, last, reward[:, None]) - 0.01 * token_kl


def returns(x, reward, gamma=1.0):
    """Returns the sums from each token on; a hole has reward 0 and is discounted as a step."""
    running, found = torch.zeros(8, dtype=torch.float64), []
    for r in (reward * x.mask).flip(1).unbind(1):
        running = r + gamma * running
        found.append(running)
    return torch.stack(found[::-1], 1)


def gae(x):
    value, reward = x.mask * x.value.detach(), x.mask * x.token_reward
    running, found = torch.zeros(8, dtype=torch.float64), []
    for t in reversed(range(16)):
        after = value[:, t + 1] if t < 15 else 0.0
        running = reward[:, t] + 0.99 * after - value[:, t] + 0.99 * 0.95 * running
        found.append(running)
    return torch.stack(found[::-1], 1)


def with_return(x, reward):
    return masked(returns(x, rewards(x, reward)), x.mask)


def centered(x):
    return x.reward - group_mean(x.reward)


def without_deviation(x):
    found = returns(x, rewards(x, centered(x)))
    return masked(found - total(found, x.mask) / x.mask.sum(), x.mask)


def delta(x):
    return (x.chosen - x.rejected) - (x.ref_chosen - x.ref_rejected)


def nll(x):
    return -((x.logprob * x.mask).sum(1) / x.mask.sum(1)).mean()


def scores(x):
    return x.chosen_score - x.rejected_score


ROWS = {
    "policy_loss_type=ppo": lambda x: token_mean(ppo(x), x.mask),
    "the same, where its clamp holds": stale_ppo,
    "eps_clip_low_high=0.2 0.28": lambda x: token_mean(ppo(x, high=0.28), x.mask),
    "dual_clip=3.0": lambda x: token_mean(
        dual_clipped(ratio(x), x.token_advantage, 0.2, 0.2, 3.0), x.mask
    ),
    "token_level_loss=False": lambda x: mean_of_answers(ppo(x), x.sparse),
    "batch_num_tokens=64, dp_size=2": lambda x: total(ppo(x), x.mask) / 64 * 2,
    "policy_loss_type=gspo": gspo,
    "policy_loss_type=gspo, is_correction_level=token": gspo_of_sampler,
    "is_correction_level=token, mode=mask, threshold=0.5 5": lambda x: corrected(
        x, kept(importance(x), 0.5, 5.0, x)
    ),
    "is_correction_level=token, mode=clip, threshold=0.5 2": lambda x: corrected(
        x, importance(x).clamp(0.5, 2.0)
    ),
    "is_correction_level=seq, mode=mask, threshold=0.9 1.2": lambda x: corrected(
        x, kept(geometric(x), 0.9, 1.2, x)
    ),
    "is_correction_level=token, gating=tv, threshold=0.1": gated_by_variation,
    "is_correction_level=seq, gating=binary_kl, threshold=0.05": gated_by_answer_kl,
    "actor.entropy_coef=0.01": lambda x: (
        token_mean(ppo(x), x.mask) - 0.01 * token_mean(x.entropy, x.mask)
    ),
    "kl.estimator=k1": lambda x: with_kl(x, d(x)),
    "kl.estimator=k2": lambda x: with_kl(x, 0.5 * d(x).square()),
    "kl.estimator=k3": lambda x: with_kl(x, k3(x)),
    "kl.estimator=k1, where its clamp holds": lambda x: with_kl(x, d(x, x.far_ref)),
    "kl.estimator=k2, where its clamp holds": lambda x: with_kl(x, 0.5 * d(x, x.far_ref).square()),
    "kl.estimator=k3, where its clamp holds": lambda x: with_kl(x, k3(x, x.far_ref)),
    "kl.unbiased_gradient, on policy": unbiased,
    "ValueLoss(clip_eps=0.5)": clipped_value,
    "ValueLoss(clip_eps=None)": lambda x: 0.5 * token_mean((x.value - x.target).square(), x.mask),
    "advantage.estimator=gae, gamma=0.99, lambd=0.95": lambda x: normalized(x, gae(x)),
    "the same, the returns": lambda x: masked(gae(x) + x.mask * x.value.detach(), x.mask),
    "advantage.estimator=reinforce, gamma=0.99": lambda x: normalized(
        x, returns(x, rewards(x, x.reward), 0.99)
    ),
    "advantage.estimator=reinforce_baseline": lambda x: normalized(
        x, returns(x, rewards(x, centered(x)))
    ),
    "advantage.estimator=rloo": lambda x: with_return(
        x, x.reward - (4 * group_mean(x.reward) - x.reward) / 3
    ),
    "advantage.estimator=group_norm": lambda x: with_return(
        x, centered(x) / (group_std(x.reward) + 1e-9)
    ),
    "advantage.estimator=dr_grpo": lambda x: with_return(x, centered(x)),
    "advantage.estimator=flash_reinforce": lambda x: with_return(x, x.reward - x.reward.mean()),
    "advantage.no_std_norm": without_deviation,
    "DPO: beta=0.1": lambda x: -logsigmoid(0.1 * delta(x)).mean(),
    "DPO: label_smoothing=0.1": lambda x: (
        -0.9 * logsigmoid(0.1 * delta(x)) - 0.1 * logsigmoid(-0.1 * delta(x))
    ).mean(),
    "DPO: ipo_enable, beta=0.1": lambda x: (delta(x) - 1 / (2 * 0.1)).square().mean(),
    "DPO: nll_loss_coef=0.2": lambda x: -logsigmoid(0.1 * delta(x)).mean() + 0.2 * nll(x),
    "PairWiseLoss": lambda x: -logsigmoid(scores(x)).mean(),
    "PairWiseLoss, margin": lambda x: -logsigmoid(scores(x) - x.margin).mean(),
    "LogExpLoss": lambda x: torch.log(1 + torch.exp(-scores(x))).mean(),
}
