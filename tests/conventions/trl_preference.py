# SPDX-License-Identifier: Apache-2.0
"""TRL 1.16: DPO, KTO, reward models, and the experimental CPO, SimPO and ORPO."""

import math

import torch
from torch.nn.functional import logsigmoid, relu

from conventions.eager import token_mean

BETA = 0.1


def halves(x):
    return x.chosen - x.ref_chosen, x.rejected - x.ref_rejected


def delta(x):
    h, g = halves(x)
    return h - g


def averages(x):
    h, g = halves(x)
    return h / x.chosen_length - g / x.rejected_length


def smoothed(d, flip):
    return -logsigmoid(d) * (1 - flip) - logsigmoid(-d) * flip


def exo_pair(x):
    d, flip = BETA * delta(x), torch.tensor(1e-3, dtype=torch.float64)
    won = torch.sigmoid(d) * (logsigmoid(d) - torch.log1p(-flip))
    return (won + torch.sigmoid(-d) * (logsigmoid(-d) - torch.log(flip))).mean()


def nca_pair(x):
    h, g = (BETA * y for y in halves(x))
    return (-logsigmoid(h) - 0.5 * logsigmoid(-h) - 0.5 * logsigmoid(-g)).mean()


def robust(x):
    d = BETA * delta(x)
    return ((-0.9 * logsigmoid(d) + 0.1 * logsigmoid(-d)) / 0.8).mean()


def bco_pair(x):
    h, g = (BETA * y for y in halves(x))
    return (-logsigmoid(h) - logsigmoid(-g)).mean()


def sppo_hard(x):
    h, g = halves(x)
    return ((h - 0.5 / BETA).square() + (g + 0.5 / BETA).square()).mean()


def aot(x):
    ours, theirs = x.chosen - x.rejected, x.ref_chosen - x.ref_rejected
    return smoothed(BETA * (ours.sort().values - theirs.sort().values), 0.1).mean()


def aot_unpaired(x):
    h, g = halves(x)
    return smoothed(BETA * (h.sort().values - g.sort().values), 0.1).mean()


def apo_zero(x):
    h, g = halves(x)
    return (1 - torch.sigmoid(BETA * h) + torch.sigmoid(BETA * g)).mean()


def apo_down(x):
    h, g = halves(x)
    return (torch.sigmoid(BETA * h) + 1 - torch.sigmoid(BETA * (h - g))).mean()


def discopop(x):
    d = BETA * delta(x)
    mix = torch.sigmoid(d / 0.05)
    return (-logsigmoid(d) * (1 - mix) + torch.exp(-d) * mix).mean()


def divergence(x, score):
    h, g = halves(x)
    return -logsigmoid(BETA * (score(h) - score(g))).mean()


def alpha_score(h, coefficient=0.25):
    return (torch.exp((coefficient - 1) * h) - 1) / (coefficient - 1)


def nll(x):
    return token_mean(-x.logprob, x.mask)


def sigmoid(x):
    return -logsigmoid(BETA * delta(x)).mean()


def length_desensitized(x):
    place = x.mask.cumsum(1)
    shared = (place > 0) & (place <= x.rejected_length[:, None])
    tail = place > x.rejected_length[:, None]
    own = x.logprob * x.mask
    return (own * shared).sum(1) + 0.5 * (own * tail).sum(1)


def likelihood(x):
    log_sum_square = torch.log_softmax(x.logits, -1).mul(2).logsumexp(-1).detach()
    own = torch.log_softmax(x.logits, -1).gather(-1, x.token[..., None])[..., 0].detach()
    return torch.exp(((own - log_sum_square) * x.mask).sum(1) / x.mask.sum(1))


def kto(x, kl, desirable=1.0, undesirable=1.0):
    h = x.chosen - x.ref_chosen
    good = desirable * (1 - torch.sigmoid(BETA * (h - kl)))
    bad = undesirable * (1 - torch.sigmoid(BETA * (kl - h)))
    return torch.cat([good[x.desirable], bad[~x.desirable]]).mean()


def zero_point(x):
    return (x.other - x.ref_other).mean().clamp(min=0)


def odds(x):
    p, q = x.chosen / x.chosen_length, x.rejected / x.rejected_length
    d = (p - q) - (torch.log1p(-torch.exp(p)) - torch.log1p(-torch.exp(q)))
    return -BETA * logsigmoid(d).mean()


def margins(x):
    return 2.0 * (x.chosen / x.chosen_length - x.rejected / x.rejected_length) - 0.5


def alpha_po(x):
    p, q = torch.exp(x.chosen / x.chosen_length), torch.exp(x.rejected / x.rejected_length)
    lead = (1 - p.pow(-0.25)) / 0.25 - (1 - q.pow(-0.25)) / 0.25
    return -logsigmoid(2.0 * (lead - 0.5 / 2.0)).mean()


ROWS = {
    'loss_type="sigmoid"': sigmoid,
    'loss_type="hinge"': lambda x: relu(1 - BETA * delta(x)).mean(),
    'loss_type="ipo"': lambda x: (averages(x) - 1 / (2 * BETA)).square().mean(),
    'loss_type="exo_pair", label_smoothing=1e-3': exo_pair,
    'loss_type="nca_pair"': nca_pair,
    'loss_type="robust", label_smoothing=0.1': robust,
    'loss_type="bco_pair"': bco_pair,
    'loss_type="sppo_hard"': sppo_hard,
    'loss_type="aot", label_smoothing=0.1': aot,
    'loss_type="aot_unpaired", label_smoothing=0.1': aot_unpaired,
    'loss_type="apo_zero"': apo_zero,
    'loss_type="apo_down"': apo_down,
    'loss_type="discopop", discopop_tau=0.05': discopop,
    'loss_type="sigmoid_norm"': lambda x: -logsigmoid(BETA * averages(x)).mean(),
    'loss_type="sft"': nll,
    'loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]': lambda x: (
        0.8 * sigmoid(x) + 0.2 * bco_pair(x) + 1.0 * nll(x)
    ),
    'f_divergence_type="forward_kl"': lambda x: divergence(x, lambda h: 1 - torch.exp(-h)),
    'f_divergence_type="js_divergence"': lambda x: divergence(
        x, lambda h: math.log(2) + logsigmoid(h)
    ),
    'f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.25': lambda x: divergence(
        x, alpha_score
    ),
    "ld_alpha=0.5": length_desensitized,
    "use_weighting=True": likelihood,
    "logits/chosen (a metric)": lambda x: x.logits.detach().mean(-1)[x.mask].mean(),
    "mean_token_accuracy (a metric)": lambda x: (
        (x.logits.argmax(-1) == x.token)[x.mask].double().mean()
    ),
    "KTO: the KL term": zero_point,
    "KTO: desirable_weight=1.5, undesirable_weight=0.5": lambda x: kto(x, zero_point(x), 1.5, 0.5),
    'KTO: loss_type="apo_zero_unpaired"': lambda x: kto(x, 0.0),
    "reward: the loss": lambda x: -logsigmoid(x.chosen_score - x.rejected_score).mean(),
    "reward: a margin column": lambda x: (
        -logsigmoid(x.chosen_score - x.rejected_score - x.margin).mean()
    ),
    "reward: center_rewards_coefficient=0.01": lambda x: (
        -logsigmoid(x.chosen_score - x.rejected_score).mean()
        + 0.01 * (x.chosen_score + x.rejected_score).square().mean()
    ),
    'CPO: loss_type="sigmoid", cpo_alpha=1.0': lambda x: (
        -logsigmoid(BETA * (x.chosen - x.rejected)).mean() + 1.0 * nll(x)
    ),
    'CPO: loss_type="simpo", simpo_gamma=0.5, cpo_alpha=0': lambda x: (
        -logsigmoid(margins(x)).mean()
    ),
    'CPO: loss_type="simpo", label_smoothing=0.1, cpo_alpha=0': lambda x: smoothed(
        margins(x), 0.1
    ).mean(),
    'CPO: loss_type="simpo", alpha=0.25, cpo_alpha=0': alpha_po,
    "ORPO: beta=0.1": lambda x: nll(x) + odds(x),
}
