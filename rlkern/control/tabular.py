# SPDX-License-Identifier: Apache-2.0
"""What algorithms share that keep a table of action values."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from rlkern.control.environments import Environments
from rlkern.control.group import Settings
from rlkern.control.learner import Learner
from rlkern.runs.errors import UserError
from rlkern.runs.settings.types import PositiveShare, Share


class TabularSettings(Settings):
    """Settings of tabular control."""

    learning_rate: PositiveShare = 0.5
    """Step size α; Sutton & Barto take 0.5 for their grids."""
    discount: Share = 1.0
    """Discount γ; 1 as in the episodic tasks of the textbook."""
    epsilon: Share = 0.1
    """Share of random actions, at the first step."""
    epsilon_end: Share | None = None
    """Share of random actions at the last step, between the two linearly; null keeps it."""
    initial_value: float = 0.0
    """Value of every state and action at the start."""

    @property
    def steps_matter(self) -> bool:
        """Whether an early step depends on how many there will be."""
        return self.epsilon_end is not None


class ActionValues(Learner):
    """A table Q(s, a), and actions that are greedy but for a share of random ones."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        assert isinstance(environments.actions, spaces.Discrete)
        assert environments.states is not None
        shape = environments.states, int(environments.actions.n)
        self.q = np.full(shape, settings.initial_value)

    @classmethod
    def check(cls, settings: Any, environments: Environments) -> None:
        """Raises UserError for several copies: the textbook's updates follow one episode."""
        if len(environments) != 1:
            raise UserError(f"num_envs must be 1 for {settings.algorithm}, got {len(environments)}")

    @property
    def epsilon(self) -> float:
        """The share of random actions now."""
        first, last = self.settings.epsilon, self.settings.epsilon_end
        return first if last is None else first + self.done * (last - first)

    def greedy(self, state: int) -> int:
        """Returns an action of the largest value; of several such, one by chance."""
        row = self.q[state]
        best = np.flatnonzero(row == row.max())
        return int(best[0] if len(best) == 1 else self.rng.choice(best))

    def explore(self, state: int) -> int:
        """Returns the greedy action, or with probability epsilon a random one."""
        if self.rng.random() < self.epsilon:
            return int(self.rng.integers(self.q.shape[1]))
        return self.greedy(state)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the greedy actions, the first of equal ones."""
        return self.q[observation].argmax(-1)

    def state(self) -> dict[str, Any]:
        """Returns the table."""
        return {"q": self.q}

    def load(self, state: dict[str, Any]) -> None:
        """Puts the table back."""
        self.q = state["q"]
