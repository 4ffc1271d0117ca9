# SPDX-License-Identifier: Apache-2.0
"""What learners of given answers share, and the learner of right ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from rlkern.trainer.config import Config
from rlkern.trainer.evaluate import task_accuracies
from rlkern.trainer.offline.sft import MAXIMUM_LIKELIHOOD, right_answers
from rlkern.trainer.rollout.collect import Warn
from rlkern.trainer.session import Session
from rlkern.trainer.show.display import Display
from rlkern.trainer.show.report import Sample, Stopwatch, note, update_values
from rlkern.trainer.step import Losses, StepResult, optimizer_step


def take_step(
    session: Session, losses: torch.nn.Module, batch: Any, config: Config, coefficients: dict
) -> StepResult:
    """Returns what one optimizer step on a batch did; the session moves one step on."""
    progress, rollout = session.progress, batch.rollout
    result = optimizer_step(
        losses,
        session.optimizer,
        batch,
        config,
        coefficients,
        rates=session.rates(progress.update),
        world=session.world,
    )
    progress.update += 1
    progress.step += 1
    progress.skipped_updates += result.skipped
    tokens = rollout.prompts.mask.sum() * rollout.group_size + rollout.present.sum()
    progress.num_tokens += int(tokens)
    return result


def with_times(values: dict[str, float], watch: Stopwatch, result: StepResult) -> dict[str, float]:
    """Returns the metrics of a step with the seconds that its parts took."""
    watch.seconds.update({"time/loss": result.loss_seconds, "time/step": result.step_seconds})
    return {**values, **watch.seconds, "step_time": sum(watch.seconds.values())}


class Supervised:
    """Learns from the right answers of the task, by maximum likelihood."""

    def __init__(self, session: Session):
        self.session = session
        self._config = dataclasses.replace(session.config, **MAXIMUM_LIKELIHOOD)

    def prepare(self, run: Path, display: Display) -> None:
        """Put the model under one roof with its loss."""
        self.losses: torch.nn.Module = Losses(self.session.policy, None, self._config)

    def evaluate(self) -> dict[str, float]:
        """Returns the accuracies on held-out items."""
        return task_accuracies(self.session)

    def iterate(self, warn: Warn) -> tuple[dict[str, float], list[Sample]]:
        """Returns the metrics and some answers of the next step; the session moves one step on."""
        session, progress = self.session, self.session.progress
        watch = Stopwatch(session.policy.device)
        items, progress.position = session.task.next_items(
            progress.position, session.config.prompts
        )
        batch = right_answers(session.policy, items, session.task)
        watch.lap("batch")
        result = take_step(session, self.losses, batch, self._config, {})
        note(session, [result], False, 0.0, warn)
        values = with_times(update_values(session, [result]), watch, result)
        return values, [(item.prompt, item.answer, 1.0) for item in items[:4]]
