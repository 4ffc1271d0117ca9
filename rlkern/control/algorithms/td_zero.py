# SPDX-License-Identifier: Apache-2.0
"""TD(0): the value of a state is moved to the reward and the value of the state after it.

    V(s) ← V(s) + α·(r + γ·V(s') − V(s))

Paper: Sutton 1988, with λ = 0; Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 6.2.

>>> import numpy as np
>>> v = np.array([1.0, 4.0])
>>> float(updated(v, Transition(0, 0, 2.0, 1, False), learning_rate=0.5, discount=0.5))
3.0
>>> v.tolist()                                          # 1 + 0.5·(2 + 0.5·4 − 1)
[2.5, 4.0]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.prediction import StateValues, TemporalDifferenceSettings
from rlkern.control.updates import Transition, moved, one_step


def updated(v: np.ndarray, step: Transition, *, learning_rate: Any, discount: float) -> Any:
    """Returns the temporal-difference error after moving V(s) by α times it."""
    return moved(v, step.state, one_step(step, v[step.following], discount), learning_rate)


class TDZero(StateValues):
    """One step, one update."""

    def learn(self, step: Transition, over: bool) -> float:
        """Returns the error."""
        s = self.settings
        return updated(self.v, step, learning_rate=s.learning_rate, discount=s.discount)


ALGORITHM = ControlAlgorithm(
    name="td_zero",
    paper="Sutton 1988; Sutton & Barto 2018, eq. 6.2",
    learns="prediction",
    on_policy=True,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=TemporalDifferenceSettings,
    learner=TDZero,
    # Tasks, 0.5 and the policy of Blackjack as in Sutton & Barto, examples 6.2, 7.1 and 5.1; step
    # sizes small enough for the values to stay near the true ones.
    recipes={
        "RandomWalk5-v0": {"steps": 20_000, "initial_value": 0.5, "learning_rate": 0.01},
        "RandomWalk19-v0": {"steps": 200_000, "learning_rate": 0.02},
        "Blackjack-v1": {"steps": 100_000, "policy": "stick_on_20", "learning_rate": 0.01},
    },
)
