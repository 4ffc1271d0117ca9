# SPDX-License-Identifier: Apache-2.0
"""What the projects' formulas share: ratios, the clipped surrogate, means."""

import torch
from torch import Tensor


def ratio(x) -> Tensor:
    return torch.exp(x.logprob - x.old)


def answer_ratio(x, mask: Tensor) -> Tensor:
    """Returns the geometric mean of each answer's ratios, (B, 1)."""
    total = ((x.logprob - x.old) * mask).sum(1, keepdim=True)
    return torch.exp(total / mask.sum(1, keepdim=True).clamp(min=1))


def surrogate(r: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return -torch.min(r * advantage, r.clamp(1 - low, 1 + high) * advantage)


def dual_clipped(r: Tensor, advantage: Tensor, low: float, high: float, cap: float) -> Tensor:
    loss = surrogate(r, advantage, low, high)
    return torch.where(advantage < 0, torch.min(loss, -cap * advantage), loss)


def soft_gate(r: Tensor, advantage: Tensor, positive: float, negative: float) -> Tensor:
    tau = torch.where(advantage > 0, torch.full_like(r, positive), negative)
    return -torch.sigmoid(tau * (r - 1)) * 4 / tau * advantage


def k3(x) -> Tensor:
    d = x.ref - x.logprob
    return torch.exp(d) - d - 1


def total(loss: Tensor, mask: Tensor) -> Tensor:
    return (loss * mask).sum()


def token_mean(loss: Tensor, mask: Tensor) -> Tensor:
    return total(loss, mask) / mask.sum()


def answer_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over all rows, also empty ones, of their means over tokens."""
    return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """Returns x where the mask is True, 0 elsewhere."""
    return torch.where(mask, x, 0.0)


def group_mean(reward: Tensor) -> Tensor:
    """Returns the mean of its group of four at each reward, NaN left out."""
    return reward.view(-1, 4).nanmean(1, keepdim=True).expand(-1, 4).flatten()


def group_std(reward: Tensor) -> Tensor:
    """Returns the deviation of its group of four at each reward, of n − 1, NaN left out."""
    groups = [g[~g.isnan()].std().expand(4) for g in reward.view(-1, 4)]
    return torch.cat(groups)


def whitened(x: Tensor, mask: Tensor) -> Tensor:
    """Returns what verl's masked_whiten does, of n − 1, and 0 elsewhere."""
    mean = total(x, mask) / mask.sum()
    variance = total((x - mean).square(), mask) / (mask.sum() - 1)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def cross_entropy(x, logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1).gather(-1, x.token[..., None])[..., 0]
