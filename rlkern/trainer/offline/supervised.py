# SPDX-License-Identifier: Apache-2.0
"""Maximum likelihood of right answers, through the same loss call as reinforcement learning: the
learner of the algorithm that does only this, and the supervised start of all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

import rlkern
from rlkern.trainer.collect import Warn
from rlkern.trainer.data.chat import Answer, shown_answer
from rlkern.trainer.data.render import is_text
from rlkern.trainer.evaluate import answer, own_rewards, task_accuracies
from rlkern.trainer.losses import Losses, Objective, PolicyLosses
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.offline.likelihood import likelihood
from rlkern.trainer.parts import Parts
from rlkern.trainer.rollout.text import given_rows
from rlkern.trainer.rollout.turns import without_replies
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings.running import Sft
from rlkern.trainer.show.completions import question
from rlkern.trainer.show.report import StepAnswers, Stopwatch, note, update_values
from rlkern.trainer.tasks.task import Item, Task
from rlkern.trainer.update import StepResult, Updater, rates

AfterStep = Callable[[int, float, Updater], None]
# Puts the optimizer of a checkpoint back.
Restore = Callable[[Path, Parts, Updater], None]
# Training items that sft.target is measured on, and the steps between two measurements.
_TARGET_ITEMS, _TARGET_EVERY = 256, 10


def right_answers(policy: Policy, items: list[Item], task: Task) -> Rows:
    """Returns the right answers of items as rows whose loss is their negative log-likelihood."""
    asked = [item.asked for item in items]
    answers = [_ended(policy, item, task.stop) for item in items]
    given = given_rows(policy, asked, answers, stop=task.stop, keep=task.keep)
    rows = without_replies(policy, given, items, task)
    return dataclasses.replace(
        rows,
        advantage=torch.ones(len(items), device=policy.device),
        weight=rlkern.aggregate.token_weight(rows.mask, "token_mean"),
    )


def _ended(policy: Policy, item: Item, stop: str) -> Answer:
    """Returns the right answer, a text with what ends it in this task; a template ends others."""
    right = item.right
    if isinstance(right, str) and is_text(policy.tokenizer, item.asked):
        return right + stop
    return right


def supervise(
    parts: Parts, asked: Sft, saved: Path | None, restore: Restore, *, after_step: AfterStep
) -> None:
    """Trains on right answers of training items, from what was saved of it on;
    after_step(step, loss, updater) is called after each step.

    Ends early if the accuracy on coming training items reaches sft.target: the step at which a
    small model understands a task differs much between seeds.
    """
    policy, task, settings = parts.policy, parts.task, parts.settings
    # Sharding comes later, with what trains then: every process still holds all weights.
    optimizer = settings.optimizer.model_copy(update={"lr": asked.lr})
    start = settings.model_copy(update={"optimizer": optimizer, "parallel": "ddp"})
    losses = PolicyLosses(policy, start, Objective.likelihood(settings))
    updater, progress = Updater(losses, start, parts.world), parts.progress
    if saved is not None:
        restore(saved, parts, updater)
    for step in range(progress.supervised + 1, asked.steps + 1):
        items, position = task.next_items(progress.supervised_position, asked.batch)
        result = updater.step(right_answers(policy, items, task), {"policy": 1.0})
        progress.supervised, progress.supervised_position = step, position
        if asked.target and step % _TARGET_EVERY == 0:
            coming, _ = task.next_items(position, _TARGET_ITEMS)
            found = answer(
                policy,
                task,
                coming,
                parts.sampling,
                settings,
                world=parts.world,
                rewards=own_rewards(parts),
            )
            if found.accuracy().mean().item() >= asked.target:
                break
        after_step(step, result.loss, updater)
    progress.supervised = progress.supervised_position = 0


def take_step(parts: Parts, updater: Updater, rows: Rows) -> StepResult:
    """Returns what one optimizer step on given answers did; the run moves one step on."""
    progress = parts.progress
    result = updater.step(rows, rates(parts.settings, progress.update))
    progress.count_update(result.skipped)
    progress.count_step(rows.tokens)
    return result


def with_times(values: dict[str, float], watch: Stopwatch, result: StepResult) -> dict[str, float]:
    """Returns the metrics of a step with the seconds that its parts took."""
    watch.seconds.update({"time/loss": result.loss_seconds, "time/step": result.step_seconds})
    return {**values, **watch.seconds, "step_time": sum(watch.seconds.values())}


class Supervised:
    """Learns from the right answers of the task, by maximum likelihood."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def losses(self) -> Losses:
        """Returns the loss of right answers."""
        settings = self.parts.settings
        objective = Objective.likelihood(settings, settings.algorithm)
        return PolicyLosses(self.parts.policy, settings, objective)

    def evaluate(self) -> dict[str, float]:
        """Returns the accuracies on held-out items, or the likelihood of a file's held-out
        answers."""
        task, at_once = self.parts.task, self.parts.settings.eval.batch
        if task.rows is None:
            return task_accuracies(self.parts)
        firsts, held = range(0, len(task.held_out), at_once), task.held_out
        return likelihood(
            self.parts,
            (right_answers(self.parts.policy, held[n : n + at_once], task) for n in firsts),
        )

    def step(self, updater: Updater, warn: Warn) -> tuple[dict[str, float], StepAnswers]:
        """Returns the metrics and the answers of the next step; the run moves one step on."""
        parts, progress = self.parts, self.parts.progress
        watch = Stopwatch(parts.policy.device)
        items, progress.position = parts.task.next_items(
            progress.position, parts.settings.batch.prompts
        )
        rows = right_answers(parts.policy, items, parts.task)
        watch.lap("batch")
        result = take_step(parts, updater, rows)
        note(parts, [result], False, 0.0, warn)
        values = with_times(update_values(parts, [result]), watch, result)
        shown = [
            (question(item, parts.settings), shown_answer(item.right), 1.0) for item in items[:4]
        ]
        return values, StepAnswers(shown)
