# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: micro-batches through the model and the policy loss, then clip and AdamW."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

import rlkern
from rlkern.trainer.config import Config
from rlkern.trainer.models import Policy
from rlkern.trainer.rollout import Rollout
from rlkern.trainer.scoring import hidden_states
from rlkern.trainer.settings import resolve


@dataclass
class Batch:
    """A rollout with what the loss needs: advantage (B,), weight (B, T) and the scored
    log-probabilities.
    """

    rollout: Rollout
    advantage: Tensor
    weight: Tensor
    old_logprob: Tensor | None = None
    ref_logprob: Tensor | None = None


@dataclass
class StepResult:
    """What one optimizer step did; `skipped` when a loss or gradient was not finite."""

    loss: float
    grad_norm: float
    metrics: Tensor
    skipped: bool
    loss_seconds: float
    step_seconds: float
    differences: dict[str, float] = field(default_factory=dict)


def pieces(prompts: int, count: int) -> list[tuple[int, int]]:
    """Returns the prompt ranges of the micro-batches, as even as they can be.

    >>> pieces(5, 2)
    [(0, 2), (2, 5)]
    """
    edges = [prompts * i // count for i in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def accumulate(
    policy: Policy, batch: Batch, config: Config, coefficients: dict
) -> tuple[Tensor, Tensor, dict]:
    """Add the gradients of a batch to the weights; return the loss, the metrics vector and the
    differences.

    batch.weight holds the counts of the whole batch, so the sum does not depend on the split.
    """
    group = batch.rollout.group_size
    losses, metrics = [], []
    differences: dict[str, float] = {}
    for first, last in pieces(batch.rollout.prompts.token.shape[0], config.micro_batches):
        part, rows = batch.rollout.piece(first, last), slice(first * group, last * group)
        hidden = hidden_states(policy, part, share_prompts=config.share_prompts)
        arguments = {
            "token": part.token,
            "advantage": batch.advantage[rows],
            "mask": part.mask,
            "old_logprob": None if batch.old_logprob is None else batch.old_logprob[rows],
            "ref_logprob": None if batch.ref_logprob is None else batch.ref_logprob[rows],
            "weight": batch.weight[rows],
            "temperature": config.temperature,
            "algorithm": config.algorithm,
            **coefficients,
        }
        if config.compare:
            found = compare(policy, hidden, arguments, config)
            differences = {
                key: max(value, differences.get(key, 0.0)) for key, value in found.items()
            }
        output = evaluate(policy, hidden, arguments, config.loss)
        output.loss.backward()
        losses.append(output.loss.detach())
        metrics.append(output.metrics)
    return torch.stack(losses).sum(), rlkern.merge_metrics(metrics), differences


def evaluate(policy: Policy, hidden: Tensor, arguments: dict, path: str) -> rlkern.LossOutput:
    """Returns the loss of hidden states by one of the paths that `loss` names."""
    if path == "linear":
        head = policy.head.parameters()
        with policy.precision():
            return rlkern.linear_policy_loss(hidden, head.pop("weight"), **arguments, **head)
    with policy.precision():
        logits = policy.head.logits(hidden)
    if path == "fused":
        return rlkern.policy_loss(logits, **arguments, inplace=True)
    with rlkern.use_backend("eager"):
        return rlkern.policy_loss(logits, **arguments)


def compare(policy: Policy, hidden: Tensor, arguments: dict, config: Config) -> dict[str, float]:
    """Returns how far the loss is from the one it is compared with, on the same hidden states.

    Copies leave the training untouched. The gradient is that of the hidden states; its norm's
    difference is relative to the other's.
    """
    results = []
    for path in (config.loss, str(config.compare)):
        copy = hidden.detach().clone().requires_grad_()
        loss = evaluate(policy, copy, arguments, path).loss
        (gradient,) = torch.autograd.grad(loss, copy)
        results.append((loss.item(), gradient.float().norm().item()))
    (own, norm), (other, other_norm) = results
    return {
        "compare/loss_difference": abs(own - other),
        "compare/grad_norm_difference": abs(norm - other_norm) / max(other_norm, 1e-30),
    }


def optimizer_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: Config,
    coefficients: dict,
    *,
    lr: float,
) -> StepResult:
    """Returns what one step did; the weights stay as they are when loss or gradient is
    not finite."""
    started = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss, metrics, differences = accumulate(policy, batch, config, coefficients)
    loss_value = loss.item()
    scored = time.perf_counter()
    limit = config.max_grad_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(list(policy.parameters().values()), limit).item()
    finite = math.isfinite(loss_value) and math.isfinite(norm)
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    done = time.perf_counter()
    return StepResult(
        loss_value, norm, metrics, not finite, scored - started, done - scored, differences
    )


def make_optimizer(policy: Policy, config: Config, *, lr: float) -> torch.optim.AdamW:
    """Returns AdamW over the trained weights; weight decay touches matrices only."""
    trained = list(policy.parameters().values())
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, config.adam_beta2), fused=True)


def learning_rate(config: Config, step: int) -> float:
    """Returns the learning rate of optimizer step `step`, counted from 0.

    >>> learning_rate(Config(lr=1.0, warmup_steps=4), 1)
    0.5
    """
    peak = resolve(config).lr or 0.0
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.lr_decay == "none":
        return peak
    total = config.steps * (resolve(config).epochs or 1)
    done = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    fall = done if config.lr_decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * done)
    return peak * (1.0 - (1.0 - config.lr_floor) * fall)
