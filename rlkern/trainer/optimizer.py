# SPDX-License-Identifier: Apache-2.0
"""AdamW over the parts of a model, and the schedule of their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from rlkern.trainer.losses import Losses
from rlkern.trainer.settings import Settings


def make_optimizer(losses: Losses, settings: Settings) -> torch.optim.AdamW:
    """Returns AdamW over the trained weights; weight decay touches only matrices.

    Its groups carry their part, policy or critic, and their peak learning rate.
    """
    asked = settings.optimizer
    peak = asked.lr
    groups = _groups(losses.policy.parameters().values(), "policy", peak, asked.weight_decay)
    if losses.critic is not None:
        own = settings.critic.lr or peak
        groups += _groups(losses.critic.parameters().values(), "critic", own, asked.weight_decay)
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, asked.beta2), fused=True)


def _groups(
    weights: Iterable[torch.nn.Parameter], part: str, peak: float, decay: float
) -> list[dict]:
    weights = list(weights)
    matrices, vectors = ([p for p in weights if (p.ndim >= 2) is big] for big in (True, False))
    return [
        {"params": found, "weight_decay": share, "part": part, "peak": peak, "lr": peak}
        for found, share in ((matrices, decay), (vectors, 0.0))
        if found
    ]


def learning_rate(settings: Settings, step: int, total: int) -> float:
    """Returns the share of the peak learning rate in optimizer step `step`, counted from 0, of
    `total` in all.

    >>> from rlkern.trainer.settings import of
    >>> learning_rate(of(optimizer={"warmup": 4}), 1, 100)
    0.5
    """
    warmup, decay = settings.optimizer.warmup, settings.optimizer.decay
    if step < warmup:
        return (step + 1) / warmup
    if decay is None:
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    fall = done if decay.kind == "linear" else 0.5 - 0.5 * math.cos(math.pi * done)
    return 1.0 - (1.0 - decay.floor) * fall


def rates(settings: Settings, update: int) -> dict[str, float]:
    """Returns the share of the peak learning rate that each part has in an optimizer step.

    The policy's schedule begins when its critic has warmed up: otherwise its first steps, in which
    AdamW knows nothing of the gradient's size, would be full ones.
    """
    total, waiting = settings.steps * settings.updates, 0
    if settings.has_critic:
        waiting = settings.critic.warmup * settings.updates
    policy = learning_rate(settings, max(0, update - waiting), total - waiting)
    return {"policy": policy, "critic": learning_rate(settings, update, total)}
