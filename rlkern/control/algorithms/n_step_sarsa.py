# SPDX-License-Identifier: Apache-2.0
"""n-step SARSA: the value of an action is moved to n rewards and the value of the action then.

    G = r_t + γ·r_{t+1} + … + γ^(n−1)·r_{t+n−1} + γ^n·Q(s_{t+n}, a_{t+n})
    Q(s_t, a_t) ← Q(s_t, a_t) + α·(G − Q(s_t, a_t))

Paper: Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 7.4 and 7.5 (which index rewards by
t + 1). n = 1 is SARSA; if no episode is as long as n, it is Monte Carlo control with constant α.

>>> import numpy as np
>>> q = np.array([[0.0, 0.0], [2.0, 4.0]])
>>> rates = {"learning_rate": 0.5, "discount": 0.5}
>>> float(updated(q, (0, 1), [1.0, 2.0], 4.0, **rates))  # 1 + 0.5·2 + 0.25·4 − 0
3.0
>>> q[0].tolist()
[0.0, 1.5]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.tabular import NextAction, TabularSettings
from rlkern.control.updates import Transition, complete, moved, returns
from rlkern.runs.settings.types import Count, PositiveShare


class NStepSettings(TabularSettings):
    """Settings of n-step SARSA."""

    learning_rate: PositiveShare = 0.2
    """Step size α; smaller than one step's, whose target varies less."""
    n: Count = 4
    """Rewards before the bootstrap; Sutton & Barto, fig. 7.2 and 7.4, find 4 and 10 good."""


def updated(
    q: np.ndarray,
    entry: tuple[Any, Any],
    reward: Sequence[float],
    later: float,
    *,
    learning_rate: float,
    discount: float,
) -> Any:
    """Returns the error after moving the entry (s, a) to its n rewards and the value `later`."""
    target = returns(reward, later, discount)[0]
    return moved(q, entry, target, learning_rate)


class NStepSarsa(NextAction):
    """One step, one update of the action n steps ago; at an end, of all that are left."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.window: list[list[Any]] = []  # state, action and reward of the last steps

    def learn(self, step: Transition, action: int, over: bool) -> float:
        """Returns the last error; 0 while the first n steps of an episode are taken."""
        s = self.settings
        self.window.append([step.state, step.action, step.reward])
        error = 0.0
        for steps in complete(self.window, s.n, over):
            later = 0.0 if step.terminated else float(self.q[step.following, action])
            error = updated(
                self.q, tuple(steps[0][:2]), [reward for *_, reward in steps], later,
                learning_rate=self.learning_rate, discount=s.discount,
            )  # fmt: skip
        return error

    def state(self) -> dict[str, Any]:
        """Returns the table, the last steps and the action that is to be taken."""
        return {**super().state(), "window": self.window}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.window = state["window"]


ALGORITHM = ControlAlgorithm(
    name="n_step_sarsa",
    paper="Sutton & Barto 2018, eq. 7.4 and 7.5",
    learns="value",
    on_policy=True,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=NStepSettings,
    learner=NStepSarsa,
    # CliffWalking and WindyGridworld as in Sutton & Barto, examples 6.6 and 6.5, with ε = 0.1. The
    # others explore everything first, or step by less where chance has a part.
    recipes={
        "CliffWalking-v1": {"steps": 40_000, "learning_rate": 0.05},
        "WindyGridworld-v0": {"steps": 20_000},
        "FrozenLake-v1": {
            "steps": 60_000,
            "learning_rate": 0.05,
            "epsilon": 1.0,
            "epsilon_end": 0.05,
            "discount": 0.99,
        },
        "Taxi-v4": {"steps": 100_000},
        "Blackjack-v1": {
            "steps": 100_000,
            "learning_rate": 0.01,
            "epsilon": 1.0,
            "epsilon_end": 0.1,
            "eval_episodes": 2000,
        },
    },
)
