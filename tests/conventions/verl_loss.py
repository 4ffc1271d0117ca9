# SPDX-License-Identifier: Apache-2.0
"""verl 0.9.1: policy losses, aggregation, KL, value loss."""

import torch

from conventions.eager import (
    dual_clipped,
    soft_gate,
    surrogate,
    token_mean,
    total,
)


def log_ratio(x):
    return (x.logprob - x.old).clamp(-20, 20)


def vanilla(x, advantage, low=0.2, high=0.2, cap=3.0):
    return dual_clipped(torch.exp(log_ratio(x)), advantage, low, high, cap)


def sums(x, mask):
    """Returns the token sums of the answers that have a token."""
    loss = vanilla(x, x.advantage[:, None])
    return (loss * mask).sum(1)[mask.any(1)]


def binary(x, divergence, low, high, cap=20.0):
    p, p_old = x.logprob.detach().exp(), x.old.exp()
    bad = divergence(x, p, p_old)
    advantage = x.token_advantage
    held = torch.where(advantage > 0, (bad > high) & (p > p_old), (bad > low) & (p < p_old))
    weight = torch.exp(log_ratio(x)).clamp(max=cap).detach()
    return token_mean(-advantage * weight * x.logprob * ~held, x.mask)


def total_variation(x, p, p_old):
    return (p - p_old).abs()


def binary_kl(x, p, p_old):
    rest = torch.log((1 - p_old + 1e-8) / (1 - p + 1e-8))
    return p_old * (x.old - x.logprob.detach()) + (1 - p_old) * rest


def gspo(x, old):
    d = (((x.logprob - old) * x.mask).sum(1, keepdim=True) / x.mask.sum(1, keepdim=True)).detach()
    s = torch.exp((x.logprob - x.logprob.detach() + d).clamp(max=10.0))
    loss = surrogate(s, x.token_advantage, 3e-4, 4e-4)
    return ((loss * x.mask).sum(1) / x.mask.sum(1)).mean()


def covariance(x):
    a, lp = x.token_advantage, x.logprob.detach()
    return (a - token_mean(a, x.mask)) * (lp - token_mean(lp, x.mask))


def clip_cov(x):
    r = torch.exp(x.logprob - x.old)
    free, held = -x.token_advantage * r, -x.token_advantage * r.clamp(0.0, 2.0)
    between = (covariance(x) > 0.1) & (covariance(x) < 0.5) & ~(held > free)
    return token_mean(torch.maximum(free, held) * ~between, x.mask)


def kl_cov(x):
    d = x.logprob - x.old
    count = max(1, int(x.mask.sum() * 0.1))
    bound = covariance(x)[x.mask].topk(count).values[-1]
    top = x.mask & (covariance(x) >= bound)
    loss = -x.token_advantage * d.exp()
    return token_mean(torch.where(top, loss + 0.5 * d.abs(), loss), x.mask)


def geo_mean(x):
    d, sign = x.logprob - x.old, torch.sign(x.advantage)[:, None]
    held = sign * torch.min(sign * d, sign * d.clamp(-0.4, 0.4))
    r = torch.exp((held * x.sparse).sum(1) / x.sparse.sum(1).clamp(min=1))
    answered = x.sparse.any(1)  # the mean over tokens of A is 0 where there is none
    return torch.mean(-x.advantage * answered * r)


def cispo(x):
    weight = torch.exp(log_ratio(x)).clamp(1 - 0.5, 1 + 2.0).detach()
    return token_mean(-weight * x.token_advantage * x.logprob, x.mask)


def dro(x):
    d = x.logprob - x.old
    return token_mean(-(x.logprob * x.token_advantage - 0.5 * 0.1 * d.square()), x.mask)


def bypass(x):
    d = (x.logprob - x.rollout).clamp(-20, 20)
    return token_mean(dual_clipped(d.exp(), x.token_advantage, 0.2, 0.2, 3.0), x.mask)


def bypass_reinforce(x):
    weight = torch.exp((x.logprob - x.rollout).clamp(-20, 20)).clamp(max=2.0).detach()
    return token_mean(-x.token_advantage * x.logprob * weight, x.mask)


def with_kl(x, divergence):
    loss = vanilla(x, x.token_advantage)
    return token_mean(loss, x.mask) + 0.001 * token_mean(divergence, x.mask)


def k1(x, ref=None):
    return x.logprob - (x.ref if ref is None else ref)


def k2(x, ref=None):
    return 0.5 * k1(x, ref).square()


def k3(x, ref=None):
    d = -k1(x, ref).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)


def straight_through(x, value, ref=None):
    half_square = k2(x, ref)
    return half_square - half_square.detach() + value.detach()


def clipped_value(x):
    near = x.value.clamp(x.old_value - 0.5, x.old_value + 0.5)
    loss = torch.max((x.value - x.target).square(), (near - x.target).square())
    return 0.5 * token_mean(loss, x.mask)


def weight(x):
    return torch.exp((x.old - x.rollout).clamp(-20, 20)) * x.mask


ROWS = {
    'loss_mode="vanilla", clip_ratio_c=3.0': lambda x: token_mean(
        vanilla(x, x.token_advantage), x.mask
    ),
    "clip_ratio_low=0.2, clip_ratio_high=0.28": lambda x: token_mean(
        vanilla(x, x.token_advantage, high=0.28), x.mask
    ),
    'loss_agg_mode="token-mean", batch_num_tokens=64, dp_size=2': lambda x: (
        total(vanilla(x, x.advantage[:, None]), x.mask) / 64 * 2
    ),
    'loss_agg_mode="token-sum"': lambda x: total(vanilla(x, x.advantage[:, None]), x.mask),
    'loss_agg_mode="seq-mean-token-sum"': lambda x: sums(x, x.sparse).mean(),
    'loss_agg_mode="seq-mean-token-sum-norm"': lambda x: sums(x, x.sparse).mean() / 16,
    'loss_agg_mode="seq-mean-token-sum-norm", loss_scale_factor=32, global_batch_size=16': (
        lambda x: sums(x, x.sparse).sum() / 16 / 32
    ),
    'loss_agg_mode="seq-mean-token-mean"': lambda x: (
        sums(x, x.sparse) / x.sparse.sum(1)[x.sparse.any(1)]
    ).mean(),
    'loss_mode="dppo_tv", clip_ratio=0.15, clip_ratio_c=20': lambda x: binary(
        x, total_variation, 0.15, 0.15
    ),
    'loss_mode="dppo_kl", clip_ratio=0.05, clip_ratio_c=20': lambda x: binary(
        x, binary_kl, 0.05, 0.05
    ),
    'loss_mode="gspo", loss_agg_mode="seq-mean-token-mean"': lambda x: gspo(x, x.old),
    "the same, where its clamp holds": lambda x: gspo(x, x.stale),
    'loss_mode="sapo", tau_pos=1.0, tau_neg=1.05': lambda x: (
        (soft_gate(log_ratio(x).exp(), x.token_advantage, 1.0, 1.05) * x.mask).sum(1)
        / x.mask.sum(1)
    ).mean(),
    'loss_mode="gpg"': lambda x: token_mean(-x.logprob * x.token_advantage, x.mask),
    'loss_mode="clip_cov", clip_ratio=1.0, clip_cov_ratio=1.0, clip_cov_lb=0.1, clip_cov_ub=0.5': (
        clip_cov
    ),
    'loss_mode="kl_cov", kl_cov_ratio=0.1, ppo_kl_coef=0.5': kl_cov,
    'loss_mode="geo_mean", clip_ratio=0.4': geo_mean,
    'loss_mode="dro", dro_beta=0.1': dro,
    'loss_mode="cispo", clip_ratio_low=0.5, clip_ratio_high=2.0': cispo,
    'loss_mode="bypass_mode", loss_type="ppo_clip"': bypass,
    'loss_mode="bypass_mode", loss_type="reinforce", rollout_is="token"': bypass_reinforce,
    "rollout_is_weights": lambda x: token_mean(
        vanilla(x, x.token_advantage) * weight(x).clamp(max=2.0), x.mask
    ),
    "entropy_coeff=0.01": lambda x: (
        token_mean(vanilla(x, x.token_advantage), x.mask) - 0.01 * token_mean(x.entropy, x.mask)
    ),
    'kl_loss_type="kl"': lambda x: with_kl(x, k1(x)),
    'kl_loss_type="abs"': lambda x: with_kl(x, k1(x).abs()),
    'kl_loss_type="mse"': lambda x: with_kl(x, k2(x)),
    'kl_loss_type="low_var_kl"': lambda x: with_kl(x, k3(x)),
    "the same, where its clamps hold": lambda x: with_kl(x, k3(x, x.far_ref)),
    "the same, where its clamps hold, low_var_kl+": lambda x: with_kl(
        x, straight_through(x, k3(x, x.far_ref), x.far_ref)
    ),
    'kl_loss_type="k1+"': lambda x: with_kl(x, straight_through(x, k1(x))),
    'kl_loss_type="low_var_kl+"': lambda x: with_kl(x, straight_through(x, k3(x))),
    "cliprange_value=0.5": clipped_value,
    "actor/ppo_kl (a metric)": lambda x: -log_ratio(x).detach()[x.mask].mean(),
}
