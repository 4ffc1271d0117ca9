# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: micro-batches through the model and the losses, then clip and AdamW."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

import rlkern
from rlkern.trainer.batch import Batch
from rlkern.trainer.config import Config
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.online.critic import Critic
from rlkern.trainer.processes.parallel import accumulating
from rlkern.trainer.processes.world import World
from rlkern.trainer.scoring import hidden_states
from rlkern.trainer.settings import resolve


@dataclass
class StepResult:
    """What one optimizer step did; `skipped` when a loss or gradient was not finite.

    metrics are the vectors of the pieces, none while the policy waits for its critic; value_metrics
    is their sum, None without a critic.
    """

    loss: float
    grad_norm: float
    metrics: list[Tensor]
    value_loss: float
    value_metrics: Tensor | None
    skipped: bool
    loss_seconds: float
    step_seconds: float
    differences: dict[str, float] = field(default_factory=dict)


@dataclass
class Sums:
    """What the micro-batches of a step add up to."""

    loss: Tensor
    value_loss: Tensor
    metrics: list[Tensor] = field(default_factory=list)
    value_metrics: list[Tensor] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)


def pieces(prompts: int, count: int) -> list[tuple[int, int]]:
    """Returns the prompt ranges of the micro-batches, as even as they can be.

    >>> pieces(5, 2)
    [(0, 2), (2, 5)]
    """
    edges = [prompts * i // count for i in range(count + 1)]
    return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if a < b]


class Losses(torch.nn.Module):
    """The losses of a piece of a batch as a module: what data parallelism wraps."""

    def __init__(self, policy: Policy, critic: Critic | None, config: Config):
        super().__init__()
        self.policy, self.critic, self.config = policy, critic, config
        self.trained = torch.nn.ModuleList([policy.model])
        if critic is not None:
            self.trained.append(critic.module)

    def forward(
        self, part: Batch, coefficients: dict, train_policy: bool
    ) -> tuple[rlkern.LossOutput | None, rlkern.LossOutput | None, dict[str, float]]:
        """Returns (policy loss, value loss, differences of the compared paths)."""
        config, policy = self.config, self.policy
        hidden = hidden_states(policy, part.rollout, share_prompts=config.share_prompts)
        found, differences = None, {}
        if train_policy:
            arguments = part.arguments(config, coefficients)
            if config.compare:
                differences = compare(policy, hidden, arguments, config)
            found = evaluate(policy, hidden, arguments, config.loss)
        if self.critic is None or part.value_target is None or part.value_weight is None:
            return found, None, differences
        # While the critic warms up the policy must stay as it is, what they share included.
        states = hidden if train_policy else hidden.detach()
        value = self.critic.loss(
            policy,
            part.rollout,
            states,
            part.old_value,
            part.value_target,
            part.value_weight,
            config,
        )
        return found, value, differences


def accumulate(
    losses: torch.nn.Module,
    batch: Batch,
    config: Config,
    coefficients: dict,
    *,
    world: World,
    train_policy: bool = True,
) -> Sums:
    """Add the gradients of this process's share of a batch to the weights; return the sums of all.

    The weights hold the counts of the whole batch, so the sum does not depend on the split.
    """
    own = shares(batch.rollout.prompts.token.shape[0], world, config.micro_batches)
    zero = batch.weight.new_zeros((), dtype=torch.float64)
    sums = Sums(zero.clone(), zero.clone())
    for number, (begin, end) in enumerate(own, 1):
        with accumulating(losses, last=number == len(own)):
            part = batch.piece(begin, max(end, 1))
            found, value, differences = losses(part, coefficients, train_policy)
            if begin == end:
                nothing = [0.0 * x.loss for x in (found, value) if x is not None]
                torch.stack(nothing).sum().backward()
                continue
            total = zero.float()
            for key, difference in differences.items():
                sums.differences[key] = max(difference, sums.differences.get(key, 0.0))
            if found is not None:
                total = total + found.loss
                sums.loss += found.loss.detach().double()
                sums.metrics.append(found.metrics)
            if value is not None:
                total = total + (config.value_coef or 0.0) * value.loss
                sums.value_loss += value.loss.detach().double()
                sums.value_metrics.append(value.metrics)
            total.backward()
    return of_all(sums, world)


def shares(prompts: int, world: World, count: int) -> list[tuple[int, int]]:
    """Returns the prompt ranges of this process's micro-batches: as many as every other one has,
    since they add up gradients together. What it has too few prompts for is (0, 0).

    >>> [shares(3, World(rank, 2), 4) for rank in range(2)]
    [[(0, 1), (0, 0)], [(1, 2), (2, 3)]]
    """
    first, last = world.share(prompts)
    own = [(first + a, first + b) for a, b in pieces(last - first, count)]
    return own + [(0, 0)] * (min(count, -(-prompts // world.size)) - len(own))


def of_all(sums: Sums, world: World) -> Sums:
    """Returns the sums over the processes of a run."""
    found = world.gather(sums)
    return Sums(
        torch.stack([one.loss for one in found]).sum(),
        torch.stack([one.value_loss for one in found]).sum(),
        [x for one in found for x in one.metrics],
        [x for one in found for x in one.value_metrics],
        {key: max(one.differences.get(key, 0.0) for one in found) for key in sums.differences},
    )


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
    losses: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: Config,
    coefficients: dict,
    *,
    rates: Mapping[str, float],
    world: World,
    train_policy: bool = True,
) -> StepResult:
    """Returns what one step did at each part's share of its peak learning rate; the weights stay as
    they are when loss or gradient is not finite."""
    started = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    sums = accumulate(losses, batch, config, coefficients, world=world, train_policy=train_policy)
    loss, value_loss = sums.loss.item(), sums.value_loss.item()
    scored = time.perf_counter()
    norm = clip(optimizer, config.max_grad_norm or math.inf)
    finite = all(math.isfinite(x) for x in (loss, value_loss, norm))
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rates[group["part"]]
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    done = time.perf_counter()
    return StepResult(
        loss,
        norm,
        sums.metrics,
        value_loss,
        torch.stack(sums.value_metrics).sum(0) if sums.value_metrics else None,
        not finite,
        scored - started,
        done - scored,
        sums.differences,
    )


def clip(optimizer: torch.optim.Optimizer, limit: float) -> float:
    """Returns the norm of the policy's gradient after scaling each part's down to the limit."""
    norms: dict[str, float] = {}
    for part in dict.fromkeys(group["part"] for group in optimizer.param_groups):
        groups = [group for group in optimizer.param_groups if group["part"] == part]
        weights = [p for group in groups for p in group["params"] if p.grad is not None]
        found = torch.nn.utils.clip_grad_norm_(weights, limit)
        norms[part] = float(getattr(found, "full_tensor", lambda found=found: found)())
    return norms["policy"] if all(map(math.isfinite, norms.values())) else math.nan


def make_optimizer(policy: Policy, critic: Critic | None, config: Config) -> torch.optim.AdamW:
    """Returns AdamW over the trained weights; weight decay touches matrices only.

    Its groups carry their part, policy or critic, and their peak learning rate.
    """
    config = resolve(config)
    peak = config.lr or 0.0
    groups = _groups(policy.parameters(), "policy", peak, config.weight_decay)
    if critic is not None:
        own = peak if config.critic_lr is None else config.critic_lr
        groups += _groups(critic.parameters(), "critic", own, config.weight_decay)
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, config.adam_beta2), fused=True)


def _groups(parameters: dict, part: str, peak: float, decay: float) -> list[dict]:
    weights = list(parameters.values())
    matrices = [p for p in weights if p.ndim >= 2]
    groups = [(matrices, decay), ([p for p in weights if p.ndim < 2], 0.0)]
    return [
        {"params": found, "weight_decay": share, "part": part, "peak": peak, "lr": peak}
        for found, share in groups
        if found
    ]


def learning_rate(config: Config, step: int, total: int) -> float:
    """Returns the share of the peak learning rate in optimizer step `step`, counted from 0, of
    `total` in all.

    >>> learning_rate(Config(warmup_steps=4), 1, 100)
    0.5
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_decay == "none":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    fall = done if config.lr_decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * done)
    return 1.0 - (1.0 - config.lr_floor) * fall
