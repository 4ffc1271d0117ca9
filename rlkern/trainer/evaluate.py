# SPDX-License-Identifier: Apache-2.0
"""Answers to held-out items, and the share of them that the task's verifier accepts; of a file,
what the run's own reward says of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlkern.trainer.data.chat import Message
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.parts import Parts
from rlkern.trainer.processes.world import World
from rlkern.trainer.reward.functions import Rewards, score_completions
from rlkern.trainer.rollout.sampler import ModelEngine, Sampling, random_numbers
from rlkern.trainer.rollout.talks import answer_columns
from rlkern.trainer.rollout.text import texts
from rlkern.trainer.rollout.turns import converse
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings
from rlkern.trainer.tasks.task import Item, Task


@dataclass
class Said:
    """An answer: its text, what rewards may read beside it, and what was said in a conversation."""

    text: str
    columns: dict[str, Any]
    transcript: list[Message] | None


@dataclass
class Answers:
    """S answers to each of I items: text[i][s], and score (I, S) float64, 1 for a right one, NaN
    where a reward cannot tell."""

    text: list[list[str]]
    score: Tensor

    def accuracy(self) -> Tensor:
        """Returns the mean score (I,) of each item."""
        return self.score.nanmean(-1)

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
    sampling: Sampling,
    settings: Settings,
    *,
    samples: int = 1,
    world: World | None = None,
    rewards: Rewards | None = None,
) -> Answers:
    """Returns `samples` answers to each item, scored by the task, or by rewards if they are given.

    The numbers they are drawn by have a seed of their own, so that evaluating does not change the
    training; neither eval.batch nor the number of processes changes an answer.
    """
    world = world or World()
    generator = torch.Generator().manual_seed(settings.seed + 1)
    uniform = None
    if sampling.temperature > 0:
        uniform = random_numbers(generator, len(items) * samples, sampling)
        uniform = uniform.view(len(items), samples, -1)
    first, last = world.share(len(items))
    own, numbers = items[first:last], None if uniform is None else uniform[first:last]
    said: list[list[Said]] = [[] for _ in own]
    for some, drawn in _blocks(len(own), samples, settings.eval.batch):
        count = drawn.stop - drawn.start
        rows = converse(
            ModelEngine(policy),
            task,
            own[some],
            sampling,
            group_size=count,
            uniform=None if numbers is None else numbers[some, drawn].flatten(0, 1),
        )
        found = _said(texts(policy, rows), rows)
        for place, kept in enumerate(said[some]):
            kept.extend(found[place * count : (place + 1) * count])
    text, score = [[one.text for one in kept] for kept in said], _scores(task, own, said, rewards)
    parts = world.gather((text, score))
    return Answers(
        [kept for part, _ in parts for kept in part],
        torch.tensor([row for _, part in parts for row in part], dtype=torch.float64),
    )


def _said(text: list[str], rows: Rows) -> list[Said]:
    columns, transcript = answer_columns(rows), rows.transcript
    return [
        Said(
            one,
            {name: values[n] for name, values in columns.items()},
            None if transcript is None else transcript[n],
        )
        for n, one in enumerate(text)
    ]


def _scores(
    task: Task, items: list[Item], said: list[list[Said]], rewards: Rewards | None
) -> list[list[float]]:
    if rewards is None or not items:
        return [[task.score(one.text, item) for one in kept] for kept, item in zip(said, items)]
    repeated = [item for kept, item in zip(said, items) for _ in kept]
    every = [one for kept in said for one in kept]
    columns = {name: [one.columns[name] for one in every] for name in every[0].columns}
    spoken = [one.transcript for one in every if one.transcript is not None]
    text = [one.text for one in every]
    total, _ = score_completions(rewards, repeated, text, columns, spoken or None)
    return total.view(len(items), -1).tolist()


def own_rewards(parts: Parts) -> Rewards | None:
    """Returns the rewards that held-out answers are measured by: of a file those of the run, None
    for a task, which has a verifier."""
    return None if parts.task.rows is None else parts.rewards


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


def task_accuracies(parts: Parts) -> dict[str, float]:
    """Returns eval/accuracy_<mode> of the policy on held-out items for each of eval.modes, the
    first also as eval/accuracy, and eval/pass@k of the sampled answers. Of a file it is
    eval/reward_<mode>, and right is an answer whose reward is at least 1.
    """
    settings, task, values = parts.settings, parts.task, dict[str, float]()
    what = measured(task)
    for mode in settings.eval.modes:
        found = answer(
            parts.policy,
            task,
            task.held_out,
            in_mode(parts.sampling, mode),
            settings,
            samples=samples_in(settings, mode),
            world=parts.world,
            rewards=own_rewards(parts),
        )
        values[f"eval/{what}_{mode}"] = found.accuracy().nanmean().item()
        if mode == "sampled":
            for k in settings.eval.pass_at:
                values[f"eval/pass@{k}"] = found.pass_at(k).mean().item()
    return {"eval/accuracy": values[f"eval/{what}_{settings.eval.modes[0]}"], **values}


def measured(task: Task) -> str:
    """Returns what a held-out score is called: the accuracy of a task, the reward of a file."""
    return "accuracy" if task.rows is None else "reward"


def in_mode(sampling: Sampling, mode: str) -> Sampling:
    """Returns how answers are drawn in one of the modes of evaluation."""
    return sampling.greedy() if mode == "greedy" else sampling


def samples_in(settings: Settings, mode: str) -> int:
    """Returns how many answers are drawn to each item in a mode: greedy ones are all the same."""
    return 1 if mode == "greedy" else settings.eval.samples
