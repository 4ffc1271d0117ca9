# SPDX-License-Identifier: Apache-2.0
"""TD(n): the value of a state is moved to n rewards and the value of the state after them.

    G = r_t + γ·r_{t+1} + … + γ^(n−1)·r_{t+n−1} + γ^n·V(s_{t+n})
    V(s_t) ← V(s_t) + α·(G − V(s_t))

Paper: Watkins 1989; Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 7.1 and 7.2 (which index
rewards by t + 1). n = 1 is TD(0); if no episode is as long as n, it is every-visit Monte Carlo with
constant α.

>>> import numpy as np
>>> v = np.array([1.0, 4.0])
>>> float(updated(v, 0, [2.0, 2.0], 4.0, learning_rate=0.5, discount=0.5))
3.0
>>> v.tolist()                                          # 1 + 0.5·(2 + 0.5·2 + 0.25·4 − 1)
[2.5, 4.0]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.prediction import StateValues, TemporalDifferenceSettings
from rlkern.control.updates import Transition, complete, moved, returns
from rlkern.runs.settings.types import Count


class TDNSettings(TemporalDifferenceSettings):
    """Settings of TD(n)."""

    n: Count = 4
    """Rewards before the bootstrap; Sutton & Barto, fig. 7.2, find 4 best on 19 states."""


def updated(
    v: np.ndarray,
    state: Any,
    reward: Any,
    later: Any,
    *,
    learning_rate: Any,
    discount: float,
) -> Any:
    """Returns the error after moving V(s) to its n rewards and the value `later`."""
    target = returns(reward, later, discount)[0]
    return moved(v, state, target, learning_rate)


class TDN(StateValues):
    """One step, one update of the state n steps ago; at an end, of all that are left."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.window: list[list[Any]] = []  # state and reward of the last steps

    def learn(self, step: Transition, over: bool) -> float:
        """Returns the last error; 0 while the first n steps of an episode are taken."""
        s = self.settings
        self.window.append([step.state, step.reward])
        error = 0.0
        for steps in complete(self.window, s.n, over):
            later = 0.0 if step.terminated else float(self.v[step.following])
            error = updated(
                self.v, steps[0][0], [reward for _, reward in steps], later,
                learning_rate=s.learning_rate, discount=s.discount,
            )  # fmt: skip
        return error

    def state(self) -> dict[str, Any]:
        """Returns the table and the last steps."""
        return {**super().state(), "window": self.window}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.window = state["window"]


ALGORITHM = ControlAlgorithm(
    name="td_n",
    paper="Watkins 1989; Sutton & Barto 2018, eq. 7.1 and 7.2",
    learns="prediction",
    on_policy=True,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=TDNSettings,
    learner=TDN,
    # Tasks, 0.5 and the policy of Blackjack as in Sutton & Barto, examples 6.2, 7.1 and 5.1; step
    # sizes small enough for the values to stay near the true ones.
    recipes={
        "RandomWalk5-v0": {"steps": 20_000, "initial_value": 0.5, "learning_rate": 0.005},
        "RandomWalk19-v0": {"steps": 200_000, "learning_rate": 0.01},
        "Blackjack-v1": {"steps": 100_000, "policy": "stick_on_20", "learning_rate": 0.01},
    },
)
