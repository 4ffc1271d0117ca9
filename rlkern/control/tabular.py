# SPDX-License-Identifier: Apache-2.0
"""What algorithms share that keep a table of action values."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from rlkern.control.environments import Environments
from rlkern.control.group import Settings
from rlkern.control.learner import Learner, one_copy
from rlkern.control.tables import draw_action_values
from rlkern.control.updates import Transition
from rlkern.runs.settings.types import PositiveShare, Share


class ExploringSettings(Settings):
    """Settings of every tabular control."""

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


class TabularSettings(ExploringSettings):
    """Settings of tabular control by temporal differences."""

    learning_rate: PositiveShare = 0.5
    """Step size α; Sutton & Barto take 0.5 for their grids."""
    learning_rate_end: Share | None = None
    """Step size at the last step, between the two linearly; null keeps it. What a constant one has
    learned goes on changing with every random action."""

    @property
    def steps_matter(self) -> bool:
        """Whether an early step depends on how many there will be."""
        return super().steps_matter or self.learning_rate_end is not None


def between(first: float, last: float | None, done: float) -> float:
    """Returns what falls or rises linearly from `first` to `last` where a share of the run is done;
    without a `last` it stays.

    >>> between(1.0, 0.0, 0.25), between(1.0, None, 0.25)
    (0.75, 1.0)
    """
    return first if last is None else first + done * (last - first)


def epsilon_greedy(row: np.ndarray, epsilon: float) -> np.ndarray:
    """Returns the probabilities (…, A) of the actions by their values (…, A): ε is shared by all,
    the rest by the best.

    >>> epsilon_greedy(np.array([1.0, 3.0, 3.0, 0.0]), 0.2).tolist()
    [0.05, 0.45, 0.45, 0.05]
    """
    best = row == row.max(-1, keepdims=True)
    return epsilon / row.shape[-1] + (1.0 - epsilon) * best / best.sum(-1, keepdims=True)


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
        """Raises UserError for several copies."""
        one_copy(settings, environments)

    @property
    def epsilon(self) -> float:
        """The share of random actions now."""
        return between(self.settings.epsilon, self.settings.epsilon_end, self.done)

    @property
    def learning_rate(self) -> float:
        """The step size now, of an algorithm with TabularSettings."""
        return between(self.settings.learning_rate, self.settings.learning_rate_end, self.done)

    def values(self, state: Any) -> np.ndarray:
        """Returns the values (…, A) that the actions are chosen by, of one state or of several."""
        return self.q[state]

    def explore(self, state: int) -> int:
        """Returns the greedy action, or with probability epsilon a random one; of several greedy
        ones, one by chance."""
        row = self.values(state)
        if self.rng.random() < self.epsilon:
            return int(self.rng.integers(len(row)))
        best = np.flatnonzero(row == row.max())
        return int(best[0] if len(best) == 1 else self.rng.choice(best))

    def take(self, state: int, action: int) -> tuple[Transition, bool]:
        """Returns what an action led to, and whether the episode is over."""
        found = self.environments.step(np.array([action]))
        ended = bool(found.terminated[0])
        step = Transition(state, action, float(found.reward[0]), int(found.next[0]), ended)
        return step, ended or bool(found.truncated[0])

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the greedy actions, the first of equal ones."""
        return self.values(observation).argmax(-1)

    def measures(self, error: Any) -> dict[str, float]:
        """Returns what a step reports."""
        return {"losses/td_error": abs(float(error)), "charts/epsilon": self.epsilon}

    def state(self) -> dict[str, Any]:
        """Returns the table."""
        return {"q": self.q}

    def load(self, state: dict[str, Any]) -> None:
        """Puts the table back."""
        self.q = state["q"]

    def draw(self, folder: Path) -> None:
        """Draws values.png: the largest values, the greedy policy and its path."""
        env = self.environments.copies[0].unwrapped
        draw_action_values(env, self.values(slice(None)), folder / "values.png")


class OneStep(ActionValues):
    """One step, one update, which needs no further action."""

    @abstractmethod
    def learn(self, step: Transition) -> float:
        """Returns the temporal-difference error of a step after learning from it."""

    def iterate(self) -> dict[str, float]:
        """Takes a step and learns from it."""
        state = int(self.environments.observation[0])
        step, _ = self.take(state, self.explore(state))
        return self.measures(self.learn(step))


class NextAction(ActionValues):
    """Chooses the next action before it learns from a step, and then takes that one."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.action: int | None = None

    @abstractmethod
    def learn(self, step: Transition, action: int, over: bool) -> float:
        """Returns the temporal-difference error of a step after learning from it.

        action  chosen in the state that the step led to
        over    whether the episode has ended there
        """

    def iterate(self) -> dict[str, float]:
        """Takes a step, chooses the next action and learns."""
        state = int(self.environments.observation[0])
        step, over = self.take(state, self.explore(state) if self.action is None else self.action)
        following = self.explore(step.following)
        error = self.learn(step, following, over)
        self.action = None if over else following
        return self.measures(error)

    def state(self) -> dict[str, Any]:
        """Returns the table and the action that is to be taken."""
        return {**super().state(), "action": self.action}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.action = state["action"]
