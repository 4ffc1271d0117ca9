# SPDX-License-Identifier: Apache-2.0
"""Who takes the steps of a run: one learner for each kind of data that an algorithm learns from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from rlkern.trainer.offline.preferences import FromPairs, Judged, Scored
from rlkern.trainer.offline.supervised import Supervised
from rlkern.trainer.online.learner import Online
from rlkern.trainer.rollout.collect import Warn
from rlkern.trainer.session import Session
from rlkern.trainer.show.display import Display
from rlkern.trainer.show.report import Sample


class Learner(Protocol):
    """Takes the steps of a run; all that a resume needs is in the session and the run directory.

    `prepare` makes `losses`, which the run then spreads over its processes.
    """

    losses: torch.nn.Module

    def prepare(self, run: Path, display: Display) -> None:
        """Make what must exist before the first step, or find it again after a resume."""

    def iterate(self, warn: Warn) -> tuple[dict[str, float], list[Sample]]:
        """Returns the metrics and some samples of the next step; the session moves one step on."""

    def evaluate(self) -> dict[str, float]:
        """Returns eval/* on held-out data, eval/accuracy among them."""


# By (learns_from, trains) of a declaration.
LEARNERS: dict[tuple[str, str], Callable[[Session], Learner]] = {
    ("rollouts", "policy"): Online,
    ("answers", "policy"): Supervised,
    ("pairs", "policy"): FromPairs,
    ("judged", "policy"): Judged,
    ("pairs", "reward_model"): Scored,
}


def make_learner(session: Session) -> Learner:
    """Returns the learner that a session's algorithm asks for."""
    return LEARNERS[session.algorithm.learns_from, session.algorithm.trains](session)
