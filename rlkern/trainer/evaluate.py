# SPDX-License-Identifier: Apache-2.0
"""Answers to held-out items, and the share of them that the task's verifier accepts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlkern.trainer.config import Config
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.data import Sampling, texts
from rlkern.trainer.rollout.engines import ModelEngine
from rlkern.trainer.rollout.sampler import random_numbers
from rlkern.trainer.rollout.turns import converse, turns
from rlkern.trainer.tasks.task import Item, Task

if TYPE_CHECKING:
    from rlkern.trainer.session import Session


@dataclass
class Answers:
    """S answers to each of I items: text[i][s], and score (I, S) float64, 1 for a right one."""

    text: list[list[str]]
    score: Tensor

    def accuracy(self) -> Tensor:
        """Returns the mean score (I,) of each item."""
        return self.score.mean(-1)

    def pass_at(self, k: int) -> Tensor:
        """Returns the estimate (I,) of the chance that one of k answers is right."""
        n = self.score.shape[-1]
        right = (self.score >= 1).sum(-1).tolist()
        return torch.tensor([pass_at_k(n, c, k) for c in right], dtype=torch.float64)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the chance that k of n answers, drawn without replacement, hold one of the c right.

        pass@k = 1 − C(n − c, k) / C(n, k)

    Paper: arXiv 2107.03374, eq. 1; the unbiased estimate of 1 − (1 − p)^k.

    >>> pass_at_k(4, 1, 2)   # of 6 pairs, 3 are without the right one
    0.5
    >>> pass_at_k(4, 3, 2)   # no pair is without a right one
    1.0
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def standard_error(value: Tensor) -> float:
    """Returns the standard error of the mean over items (I,): their spread over √I.

    >>> round(standard_error(torch.tensor([0.0, 1.0, 1.0, 0.0])), 4)   # √(1/3) over √4
    0.2887
    """
    return (value.std() / math.sqrt(len(value))).item() if len(value) > 1 else math.nan


def answer(
    policy: Policy,
    task: Task,
    items: list[Item],
    config: Config,
    *,
    sampling: Sampling,
    samples: int,
    world: World | None = None,
) -> Answers:
    """Returns `samples` answers to each item, scored.

    The numbers they are drawn by have a seed of their own, so that evaluating does not change the
    training; neither eval_batch nor the number of processes changes an answer.
    """
    world = world or World()
    sampling = replace(sampling, max_turns=turns(config, task))
    generator = torch.Generator().manual_seed(config.seed + 1)
    uniform = None
    if sampling.temperature > 0:
        uniform = random_numbers(generator, len(items) * samples, sampling)
        uniform = uniform.view(len(items), samples, -1)
    first, last = world.share(len(items))
    own, numbers = items[first:last], None if uniform is None else uniform[first:last]
    text: list[list[str]] = [[] for _ in own]
    for rows, drawn in _blocks(len(own), samples, config.eval_batch):
        count = drawn.stop - drawn.start
        rollout = converse(
            ModelEngine(policy),
            task,
            own[rows],
            sampling,
            group_size=count,
            uniform=None if numbers is None else numbers[rows, drawn].flatten(0, 1),
        )
        found = texts(policy, rollout)
        for row, kept in enumerate(text[rows]):
            kept.extend(found[row * count : (row + 1) * count])
    score = [[task.score(one, item) for one in kept] for kept, item in zip(text, own)]
    parts = world.gather((text, score))
    return Answers(
        [kept for part, _ in parts for kept in part],
        torch.tensor([row for _, part in parts for row in part], dtype=torch.float64),
    )


def _blocks(items: int, samples: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Yields ranges of items and of their samples that hold at most `most` completions.

    >>> [(rows.stop, drawn.stop) for rows, drawn in _blocks(3, 2, 4)]
    [(2, 2), (3, 2)]
    >>> [(rows.stop, drawn.stop) for rows, drawn in _blocks(1, 5, 4)]
    [(1, 4), (1, 5)]
    """
    height, width = max(1, most // samples), min(samples, most)
    for row in range(0, items, height):
        for drawn in range(0, samples, width):
            yield (
                slice(row, min(items, row + height)),
                slice(drawn, min(samples, drawn + width)),
            )


def accuracy(
    policy: Policy,
    task: Task,
    items: list[Item],
    config: Config,
    *,
    mode: str,
    stop: Tensor,
    max_new_tokens: int,
    world: World | None = None,
) -> float:
    """Returns the accuracy on items, with one sampled or greedy answer to each."""
    sampling = samplings(config, stop, max_new_tokens)[mode]
    found = answer(policy, task, items, config, sampling=sampling, samples=1, world=world)
    return found.accuracy().mean().item()


def evaluate(
    policy: Policy,
    task: Task,
    config: Config,
    *,
    stop: Tensor,
    max_new_tokens: int,
    world: World | None = None,
) -> dict[str, float]:
    """Returns eval/accuracy_<mode> on held-out items for each of eval_modes, the first also as
    eval/accuracy, and eval/pass@k of the sampled ones.
    """
    values: dict[str, float] = {}
    ways = samplings(config, stop, max_new_tokens)
    for mode in config.eval_modes:
        found = answer(
            policy,
            task,
            task.held_out,
            config,
            sampling=ways[mode],
            samples=config.eval_samples if ways[mode].temperature > 0 else 1,
            world=world,
        )
        values[f"eval/accuracy_{mode}"] = found.accuracy().mean().item()
        if ways[mode].temperature > 0:
            for k in config.eval_pass_at:
                values[f"eval/pass@{k}"] = found.pass_at(k).mean().item()
    return {"eval/accuracy": values[f"eval/accuracy_{config.eval_modes[0]}"], **values}


def task_accuracies(session: Session) -> dict[str, float]:
    """Returns the accuracies of the policy on the task's held-out items."""
    return evaluate(
        session.policy,
        session.task,
        session.config,
        stop=session.sampling.stop,
        max_new_tokens=session.sampling.max_new_tokens,
        world=session.world,
    )


def samplings(config: Config, stop: Tensor, max_new_tokens: int) -> dict[str, Sampling]:
    """Returns how answers are drawn in each of the modes of evaluation."""
    sampled = Sampling(max_new_tokens, stop, config.temperature, config.top_k, config.top_p)
    return {"sampled": sampled, "greedy": sampled.greedy()}
