# SPDX-License-Identifier: Apache-2.0
"""What every classic algorithm is for the loop that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from rlkern.control.environments import Environments
from rlkern.runs.errors import UserError


class Learner(ABC):
    """Acts in environments and learns from what happens.

    Random numbers come from `self.rng` (NumPy) and from torch's global generator; a checkpoint
    holds both, and the loop seeds both.
    """

    def __init__(self, settings: Any, environments: Environments) -> None:
        self.settings = settings
        self.environments = environments
        self.rng = np.random.default_rng(settings.seed)

    @classmethod  # noqa: B027
    def check(cls, settings: Any, environments: Environments) -> None:
        """Raises UserError for settings or environments that the algorithm cannot work with."""

    @abstractmethod
    def iterate(self) -> dict[str, float]:
        """Acts for a while, learns from it, and returns what it measured (losses/…)."""

    @abstractmethod
    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the actions (E, …) without exploration for observations (E, …)."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on beside random numbers and environments:
        a tree of mappings, lists, tensors, arrays and plain values."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Puts such a state back."""

    def close(self) -> None:  # noqa: B027
        """Ends what works for the learner beside this process."""

    def draw(self, folder: Path) -> None:  # noqa: B027
        """Draws what there is to see of what was learned into a folder."""

    def measured(self) -> dict[str, float]:
        """Returns further numbers of an evaluation, such as the distance to the true values."""
        return {}

    @property
    def done(self) -> float:
        """The share of the run that is over, from 0 to 1."""
        return min(1.0, self.environments.steps / self.settings.steps)


def one_copy(settings: Any, environments: Environments) -> None:
    """Raises UserError for several copies, for an algorithm that follows one episode."""
    if len(environments) != 1:
        raise UserError(f"num_envs must be 1 for {settings.algorithm}, got {len(environments)}")
