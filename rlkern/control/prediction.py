# SPDX-License-Identifier: Apache-2.0
"""What algorithms share that keep a table of the values of a policy that is given."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from rlkern.control.dynamic import true_values
from rlkern.control.environments import Environments
from rlkern.control.given_policies import probabilities
from rlkern.control.group import Settings
from rlkern.control.learner import Learner, one_copy
from rlkern.control.tables import draw_state_values
from rlkern.control.updates import Transition
from rlkern.runs.settings.types import PositiveShare, Share


class PredictionSettings(Settings):
    """Settings of every prediction."""

    env: str = "RandomWalk19-v0"
    """Id of a gymnasium environment; module:Id imports the module first."""
    policy: str = "uniform"
    """Policy that is judged: uniform, or one that is known for the environment, such as Blackjack's
    stick_on_20."""
    discount: Share = 1.0
    """Discount γ; 1 as in the episodic tasks of the textbook."""
    initial_value: float = 0.0
    """Value of every state at the start."""


class TemporalDifferenceSettings(PredictionSettings):
    """Settings of prediction by temporal differences."""

    learning_rate: PositiveShare = 0.05
    """Step size α; Sutton & Barto, fig. 6.2, take 0.05 to 0.15."""


class StateValues(Learner):
    """A table V(s) of a policy, which acts as it is."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        assert environments.states is not None
        self.v = np.full(environments.states, settings.initial_value)
        self.policy = probabilities(settings.policy, environments)
        self._below = self.policy.cumsum(-1)[:, :-1]
        env = environments.copies[0]
        self.truth = true_values(env, self.policy, settings.discount)

    @classmethod
    def check(cls, settings: Any, environments: Environments) -> None:
        """Raises UserError for several copies, an unknown policy, or values that are infinite."""
        one_copy(settings, environments)
        policy = probabilities(settings.policy, environments)
        true_values(environments.copies[0], policy, settings.discount)

    @abstractmethod
    def learn(self, step: Transition, over: bool) -> float:
        """Returns an error after learning from a step; `over` says that the episode has ended."""

    def iterate(self) -> dict[str, float]:
        """Takes a step of the policy and learns from it."""
        state = int(self.environments.observation[0])
        action = self.act(self.environments.observation)
        found = self.environments.step(action)
        ended = bool(found.terminated[0])
        step = Transition(state, int(action[0]), float(found.reward[0]), int(found.next[0]), ended)
        error = self.learn(step, ended or bool(found.truncated[0]))
        return {"losses/td_error": abs(float(error))}

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns actions drawn from the policy."""
        draws = self.rng.random((len(observation), 1))
        return (draws >= self._below[observation]).sum(-1)

    def measured(self) -> dict[str, float]:
        """Returns the distance to the true values, over the states that the policy reaches."""
        if self.truth is None:
            return {}
        distance = (self.v - self.truth)[~np.isnan(self.truth)]
        return {"eval/rmse": float(np.sqrt((distance**2).mean()))}

    def state(self) -> dict[str, Any]:
        """Returns the table."""
        return {"v": self.v}

    def load(self, state: dict[str, Any]) -> None:
        """Puts the table back."""
        self.v = state["v"]

    def draw(self, folder: Path) -> None:
        """Draws values.png: the values beside the true ones."""
        env = self.environments.copies[0].unwrapped
        draw_state_values(env, self.v, self.truth, folder / "values.png")


class MonteCarloSettings(PredictionSettings):
    """Settings of Monte Carlo prediction."""

    learning_rate: PositiveShare | None = None
    """Step size α; null takes the mean of all returns."""


class MonteCarlo(StateValues):
    """Plays an episode, then learns from its returns."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.count = np.zeros_like(self.v)
        self.episode: list[list[Any]] = []  # state and reward of its steps
        self._error = 0.0

    @abstractmethod
    def learn_episode(self, states: list[int], reward: list[float], later: float) -> float:
        """Returns the mean size of the errors after learning from an episode; `later` is the value
        of what follows its last step, 0 where it terminated."""

    def learn(self, step: Transition, over: bool) -> float:
        """Returns the error of the last episode that was learned from."""
        self.episode.append([step.state, step.reward])
        if over:
            states, reward = (list(column) for column in zip(*self.episode))
            later = 0.0 if step.terminated else float(self.v[step.following])
            self._error = self.learn_episode(states, reward, later)
            self.episode = []
        return self._error

    def state(self) -> dict[str, Any]:
        """Returns the table, how often it was moved, and the episode that is being played."""
        own = {"count": self.count, "episode": self.episode, "error": self._error}
        return {**super().state(), **own}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.count, self.episode = state["count"], state["episode"]
        self._error = state["error"]
