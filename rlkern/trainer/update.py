# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: micro-batches through the model and the losses, then clip and AdamW, at the
learning rates of its place in their schedule.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlkern.trainer.losses import Found, Losses
from rlkern.trainer.processes import parallel
from rlkern.trainer.processes.world import World
from rlkern.trainer.rows import Rows, pieces
from rlkern.trainer.settings import Settings


@dataclass
class StepResult:
    """What one optimizer step did; `skipped` if a loss or gradient was not finite.

    metrics are the vectors of the pieces, none while the policy waits for its critic; value_metrics
    is their sum, None without a critic. unchanged is the share of bfloat16 weights with a gradient
    that the step left as they were, None if no weight is bfloat16. silent is the number of prompts
    found to have no gradient, which were left out but for one where all prompts are such.
    """

    loss: float
    grad_norm: float
    metrics: list[Tensor]
    value_loss: float
    value_metrics: Tensor | None
    skipped: bool
    loss_seconds: float
    step_seconds: float
    unchanged: float | None = None
    differences: dict[str, float] = field(default_factory=dict)
    silent: int = 0


@dataclass
class Sums:
    """What the micro-batches of a step add up to."""

    loss: Tensor
    value_loss: Tensor
    metrics: list[Tensor] = field(default_factory=list)
    value_metrics: list[Tensor] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)

    def add(self, found: Found) -> None:
        """Adds the losses of one piece."""
        for key, difference in found.differences.items():
            self.differences[key] = max(difference, self.differences.get(key, 0.0))
        if found.policy is not None:
            self.loss = self.loss + found.policy.loss.detach().double()
            self.metrics.append(found.policy.metrics)
        if found.critic is not None:
            self.value_loss = self.value_loss + found.critic.loss.detach().double()
            self.value_metrics.append(found.critic.metrics)


class Updater:
    """Takes optimizer steps on losses that all processes compute together.

    losses are spread over the processes here, by DDP or FSDP2, and so are `frozen`, models that are
    not trained.
    """

    def __init__(
        self, losses: Losses, settings: Settings, world: World, *, frozen: Iterable[Any] = ()
    ) -> None:
        self._settings, self._world, self._own = settings, world, losses
        # A critic that warms up leaves the policy without gradients.
        waits = losses.critic is not None and settings.critic.warmup > 0
        self.losses = parallel.spread(losses, world, settings.parallel, some_unused=waits)
        self._modules = [self.losses, *frozen]
        if parallel.is_sharded(losses):
            for model in frozen:
                parallel.sharded(model, world)
        # Sharding replaces parameters, so the optimizer is made after it.
        self.optimizer = make_optimizer(losses, settings)

    def gathered(self) -> contextlib.AbstractContextManager:
        """Returns the context in which each process may sample and score as it likes."""
        stack = contextlib.ExitStack()
        for module in self._modules:
            stack.enter_context(parallel.gathered(module))
        return stack

    def step(
        self, rows: Rows, rates: Mapping[str, float], *, train_policy: bool = True
    ) -> StepResult:
        """Returns what one step did at each part's share of its peak learning rate; the weights
        stay as they are if loss or gradient is not finite."""
        started = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        spoken, silent = self._speaking(rows)
        sums = self.accumulate(spoken, train_policy=train_policy)
        loss, value_loss = sums.loss.item(), sums.value_loss.item()
        scored = time.perf_counter()
        norm = clip(self.optimizer, self._settings.optimizer.max_grad_norm or math.inf)
        finite = all(math.isfinite(x) for x in (loss, value_loss, norm))
        unchanged = None
        if finite:
            watch = Rounding(self.optimizer)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * rates[group["part"]]
            self.optimizer.step()
            unchanged = watch.unchanged()
        self.optimizer.zero_grad(set_to_none=True)
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
            unchanged,
            sums.differences,
            silent,
        )

    def _speaking(self, rows: Rows) -> tuple[Rows, int]:
        """Returns the rows without prompts whose gradient is 0, which every process finds alike,
        and how many these are; one of them if there are no others, so that the weights have
        gradients of 0."""
        if not self._settings.batch.skip_silent:
            return rows, 0
        speaks = self._own.speaks(rows)
        if speaks is None or speaks.all():
            return rows, 0
        left = rows.take(speaks.nonzero().flatten()) if speaks.any() else rows.piece(0, 1)
        return left, int((~speaks).sum())

    def accumulate(self, rows: Rows, *, train_policy: bool = True) -> Sums:
        """Adds the gradients of this process's share of the rows to the weights; returns the sums
        of all processes.

        The weights hold the counts of the whole batch, so the sum does not depend on the split.
        """
        own = shares(rows.prompts, self._world, self._settings.batch.micro_batches)
        zero = torch.zeros((), dtype=torch.float64, device=rows.token.device)
        sums = Sums(zero, zero)
        for number, (begin, end) in enumerate(own, 1):
            with parallel.accumulating(self.losses, last=number == len(own)):
                found: Found = self.losses(rows.piece(begin, max(end, 1)), train_policy)
                if begin == end:
                    outputs = [x.loss for x in (found.policy, found.critic) if x is not None]
                    outputs += [] if found.router is None else [found.router]
                    torch.stack([0.0 * loss for loss in outputs]).sum().backward()
                    continue
                sums.add(found)
                total = zero.float()
                if found.policy is not None:
                    total = total + found.policy.loss
                if found.critic is not None:
                    total = total + self._settings.critic.coef * found.critic.loss
                if found.router is not None:
                    # A mean over tokens, which no count of the whole batch is in.
                    total = total + (end - begin) / rows.prompts * found.router
                total.backward()
        return of_all(sums, self._world)


class Rounding:
    """Looks whether a step moves weights, or is lost when their sum is rounded: a bfloat16 has 8
    significant bits, so a step of less than 1/512 of a weight leaves it as it is.

    At most _SAMPLE values of each bfloat16 tensor are looked at, evenly spread, in this process.
    """

    _SAMPLE = 4096

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        every = [p for group in optimizer.param_groups for p in group["params"]]
        self._weights = [p for p in every if p.dtype == torch.bfloat16 and p.grad is not None]
        self._before = [self._some(p).clone() for p in self._weights]
        self._state = optimizer.state

    def unchanged(self) -> float | None:
        """Returns the share of weights with a step to take that are as before; None without
        any."""
        counts = []
        for weight, before in zip(self._weights, self._before, strict=True):
            # A row of embeddings that no text had in it has no step to take.
            asked = self._some(self._state[weight]["exp_avg"]) != 0
            same = asked & (self._some(weight) == before)
            counts.append(torch.stack([same.sum(), asked.sum()]))
        # Together, so that a device is waited for once.
        same_as_before, moving = torch.stack(counts).sum(0).tolist() if counts else (0, 0)
        return same_as_before / moving if moving else None

    def _some(self, tensor: Tensor) -> Tensor:
        own = parallel.own(tensor.detach()).reshape(-1)
        return own[:: max(1, -(-own.numel() // self._SAMPLE))]


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


def clip(optimizer: torch.optim.Optimizer, limit: float) -> float:
    """Returns the norm of the policy's gradient after scaling each part's down to the limit."""
    norms: dict[str, float] = {}
    for part in dict.fromkeys(group["part"] for group in optimizer.param_groups):
        groups = [group for group in optimizer.param_groups if group["part"] == part]
        weights = [p for group in groups for p in group["params"] if p.grad is not None]
        found = torch.nn.utils.clip_grad_norm_(weights, limit)
        norms[part] = float(getattr(found, "full_tensor", lambda found=found: found)())
    return norms["policy"] if all(map(math.isfinite, norms.values())) else math.nan


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
