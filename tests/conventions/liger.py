# SPDX-License-Identifier: Apache-2.0
"""Liger 0.8.5: losses from hidden states and a head. The first half of the rows is chosen."""

import torch
from torch.nn.functional import logsigmoid

from conventions.eager import cross_entropy, soft_gate, surrogate, total

ALL = 64  # num_items_in_batch


def logits(x, temperature=1.0):
    return (x.hidden @ x.head.T + x.bias) / temperature


def logprob(x, temperature=1.0):
    return cross_entropy(x, logits(x, temperature))


def log_ratio(x, temperature=1.0):
    return logprob(x, temperature) - x.old


def clipped(x, temperature=1.0):
    return surrogate(log_ratio(x, temperature).exp(), x.advantage[:, None], 0.2, 0.2)


def answers(x, loss):
    """Returns the mean over all rows of their means over tokens."""
    return ((loss * x.mask).sum(-1) / x.mask.sum(-1).clamp(min=1)).sum() / len(x.mask)


def cispo(x):
    weight = log_ratio(x).exp().clamp(max=5.0).detach()
    return total(-weight * x.advantage[:, None] * logprob(x), x.mask) / ALL


def geometric(x):
    mean = (log_ratio(x) * x.mask).sum(-1) / x.mask.sum(-1)
    return mean.exp().unsqueeze(-1)


def luspo(x):
    loss = surrogate(geometric(x), x.advantage[:, None], 2e-3, 2.5e-3)
    return (loss * x.mask.sum(1, keepdim=True)).sum() / len(x.mask)


def vespo(x):
    advantage = x.advantage[:, None]
    k, rate = torch.where(advantage >= 0, 2.0, 3.0), torch.where(advantage >= 0, 3.0, 2.0)
    log_w = (log_ratio(x).detach().clamp(-20, 20) * x.mask).sum(-1, keepdim=True)
    phi = torch.exp(rate + k * log_w - rate * log_w.exp())
    return total(-phi * advantage * logprob(x), x.mask) / ALL


def two_sided(x):
    r, advantage = log_ratio(x).exp(), x.advantage[:, None]
    loss = -torch.min(r.clamp(max=4.0) * advantage, r.clamp(0.8, 1.2) * advantage)
    return total(loss, x.mask) / x.mask.sum()


def k3(x):
    d = x.ref - logprob(x)
    return torch.exp(d) - d - 1.0


def halves(x, average):
    """Returns log π of the chosen answers and of the rejected ones."""
    own = (logprob(x) * x.mask).sum(-1)
    own = own / x.mask.sum(-1) if average else own
    return own[:4], own[4:]


def nll(x):
    return -total(logprob(x)[:4], x.mask[:4]) / x.mask[:4].sum()


def dpo(x):
    chosen, rejected = halves(x, average=False)
    lead = (chosen - x.ref_chosen[:4]) - (rejected - x.ref_rejected[:4])
    return -logsigmoid(0.1 * lead).sum() / 4


def orpo(x):
    p, q = halves(x, average=True)
    odds = (p - q) - (torch.log1p(-torch.exp(p)) - torch.log1p(-torch.exp(q)))
    return nll(x) - 0.1 * logsigmoid(odds).sum() / 4


def cpo(x):
    p, q = halves(x, average=False)
    return 1.0 * nll(x) - logsigmoid(0.1 * (p - q)).sum() / 4


def simpo(x, flip=0.0):
    p, q = halves(x, average=True)
    lead = 0.1 * (p - q) - 0.5
    return (-logsigmoid(lead) * (1 - flip) - logsigmoid(-lead) * flip).sum() / 4


def kto(x):
    kl = (x.other - x.ref_other).mean().clamp(min=0)
    gain = (logprob(x) * x.mask).sum(-1) - x.ref_chosen
    sign = torch.where(x.desirable, 1, -1)
    return (1 - torch.sigmoid(0.1 * (gain - kl) * sign)).sum() / len(x.mask)


def capped(x):
    return cross_entropy(x, 2.0 * torch.tanh(logits(x) / 2.0))


def z_loss(x):
    lse = logits(x).logsumexp(-1)
    return total(-logprob(x) + 1e-4 * lse.square(), x.mask) / x.mask.sum()


def entropy(x):
    log_p = torch.log_softmax(logits(x, 0.7), -1)
    return total(-(log_p.exp() * log_p).sum(-1), x.mask) / x.mask.sum()


ROWS = {
    'loss_type="grpo"': lambda x: answers(x, clipped(x)),
    'loss_type="bnpo"': lambda x: total(clipped(x), x.mask) / x.mask.sum(),
    'loss_type="dapo", num_items_in_batch=64': lambda x: total(clipped(x), x.mask) / ALL,
    'loss_type="dr_grpo", max_completion_length=32': lambda x: (
        total(clipped(x), x.mask) / (len(x.mask) * 32)
    ),
    'loss_type="cispo", epsilon_high=5.0': cispo,
    'loss_type="sapo"': lambda x: answers(
        x, soft_gate(log_ratio(x).exp(), x.advantage[:, None], 1.0, 1.05)
    ),
    'loss_type="luspo", importance_sampling_level="sequence"': luspo,
    'loss_type="vespo"': vespo,
    'importance_sampling_level="sequence"': lambda x: answers(
        x, surrogate(geometric(x), x.advantage[:, None], 3e-4, 4e-4)
    ),
    "delta=4.0": two_sided,
    "beta=0.04": lambda x: answers(x, clipped(x) + 0.04 * k3(x)),
    "use_bias_correction_kl=True": lambda x: answers(
        x, clipped(x) + 0.04 * k3(x) * log_ratio(x).exp()
    ),
    'the same, importance_sampling_level="sequence"': lambda x: answers(
        x,
        surrogate(geometric(x), x.advantage[:, None], 3e-4, 4e-4) + 0.04 * k3(x) * geometric(x),
    ),
    "vllm_is_ratio": lambda x: answers(
        x, clipped(x) * torch.exp(x.old - x.rollout).clamp(max=3.0) + 0.04 * k3(x)
    ),
    "temperature=0.7": lambda x: answers(x, clipped(x, 0.7)),
    "LigerFusedLinearDPOLoss": dpo,
    "LigerFusedLinearORPOLoss": orpo,
    "LigerFusedLinearCPOLoss": cpo,
    "LigerFusedLinearSimPOLoss": simpo,
    "the same, label_smoothing=0.1": lambda x: simpo(x, 0.1),
    "LigerFusedLinearKTOLoss": kto,
    "LigerFusedLinearCrossEntropyLoss, softcap=2.0": lambda x: (
        -total(capped(x), x.mask) / x.mask.sum()
    ),
    "LigerFusedLinearCrossEntropyLoss, lse_square_scale=1e-4": z_loss,
    "scaled cross entropy, the entropy": entropy,
}
