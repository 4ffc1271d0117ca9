# SPDX-License-Identifier: Apache-2.0
"""Monte Carlo control: the value of an action is the mean of the returns that followed it.

    G_t = r_t + γ·G_{t+1}
    Q(s_t, a_t) ← Q(s_t, a_t) + (G_t − Q(s_t, a_t))/n(s_t, a_t)   at the first visit in an episode

and the policy is ε-greedy in Q (ε-soft: no action has probability 0).

Paper: Sutton & Barto, Reinforcement Learning, 2nd ed., section 5.4, on-policy first-visit Monte
Carlo control. The mean also holds the returns of earlier policies; a constant `learning_rate`
forgets them. An episode that is cut off goes on, for its return, with the value of the action that
the policy chooses in its last state.

>>> import numpy as np
>>> q, count = np.zeros((2, 2)), np.zeros((2, 2))
>>> entries, reward = [(0, 1), (1, 0), (0, 1)], [1.0, 2.0, 4.0]
>>> _ = updated(q, count, entries, reward, 0.0, learning_rate=None, discount=0.5)
>>> q.tolist()                                          # 1 + 0.5·2 + 0.25·4, 2 + 0.5·4
[[0.0, 3.0], [4.0, 0.0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.tabular import ExploringSettings, NextAction
from rlkern.control.updates import Transition, averaged, first_visits, returns
from rlkern.runs.settings.types import PositiveShare


class MonteCarloControlSettings(ExploringSettings):
    """Settings of Monte Carlo control."""

    learning_rate: PositiveShare | None = None
    """Step size α; null takes the mean of all returns."""


def updated(
    q: np.ndarray,
    count: np.ndarray,
    entries: Sequence[tuple[int, int]],
    reward: Sequence[float],
    later: float,
    *,
    learning_rate: float | None,
    discount: float,
) -> float:
    """Returns the mean size of the errors after moving the entries (s, a) of an episode to their
    returns; `later` is the value of what follows its last step, 0 where it terminated."""
    found = returns(reward, later, discount)
    errors = [
        averaged(q, count, entries[t], found[t], learning_rate) for t in first_visits(entries)
    ]
    return float(np.abs(errors).mean())


class MonteCarloControl(NextAction):
    """Plays an episode, then learns from it."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.count = np.zeros_like(self.q)
        self.episode: list[list[Any]] = []  # state, action and reward of its steps
        self._error = 0.0

    def learn(self, step: Transition, action: int, over: bool) -> float:
        """Returns the error of the last episode that was learned from."""
        s = self.settings
        self.episode.append([step.state, step.action, step.reward])
        if over:
            later = 0.0 if step.terminated else float(self.q[step.following, action])
            entries = [(state, action) for state, action, _ in self.episode]
            self._error = updated(
                self.q, self.count, entries, [reward for *_, reward in self.episode], later,
                learning_rate=s.learning_rate, discount=s.discount,
            )  # fmt: skip
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


ALGORITHM = ControlAlgorithm(
    name="mc_control",
    paper="Sutton & Barto 2018, section 5.4",
    learns="value",
    on_policy=True,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=MonteCarloControlSettings,
    learner=MonteCarloControl,
    # A policy that goes round and round never ends an episode to learn from (Sutton & Barto,
    # example 6.5), so the cliff has a time limit; WindyGridworld and Taxi have no recipe.
    recipes={
        "CliffWalking-v1": {
            "steps": 40_000,
            "learning_rate": 0.1,
            "env_options": {"max_episode_steps": 100},
        },
        "FrozenLake-v1": {
            "steps": 60_000,
            "learning_rate": 0.02,
            "epsilon": 1.0,
            "epsilon_end": 0.05,
            "discount": 0.99,
        },
        "Blackjack-v1": {
            "steps": 100_000,
            "learning_rate": 0.01,
            "epsilon": 1.0,
            "epsilon_end": 0.1,
            "eval_episodes": 2000,
        },
    },
)
