# SPDX-License-Identifier: Apache-2.0
"""SARSA: the value of an action is moved to the reward and the value of the action taken next.

    Q(s, a) ← Q(s, a) + α·(r + γ·Q(s', a') − Q(s, a))

Paper: Rummery & Niranjan 1994; Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 6.7. It learns
the values of the policy that explores (on policy), so on CliffWalking it keeps away from the edge.
Where an episode is cut off, a' is the action that the policy chooses in its last state.

>>> import numpy as np
>>> q = np.array([[0.0, 0.0], [2.0, 4.0]])
>>> float(updated(q, Transition(0, 1, 1.0, 1, False), 0, learning_rate=0.5, discount=0.9))
2.8
>>> q[0].tolist()                                       # 0 + 0.5·(1 + 0.9·2 − 0)
[0.0, 1.4]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.tabular import NextAction, TabularSettings
from rlkern.control.updates import Transition, moved, one_step


def updated(
    q: np.ndarray, step: Transition, following: Any, *, learning_rate: Any, discount: float
) -> Any:
    """Returns the temporal-difference error after moving Q(s, a) by α times it; `following` is
    a'."""
    target = one_step(step, q[step.following, following], discount)
    return moved(q, (step.state, step.action), target, learning_rate)


class Sarsa(NextAction):
    """One step, one update."""

    def learn(self, step: Transition, action: int, over: bool) -> float:
        """Returns the error."""
        s = self.settings
        return updated(self.q, step, action, learning_rate=self.learning_rate, discount=s.discount)


ALGORITHM = ControlAlgorithm(
    name="sarsa",
    paper="Rummery & Niranjan 1994; Sutton & Barto 2018, eq. 6.7",
    learns="value",
    on_policy=True,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=TabularSettings,
    learner=Sarsa,
    # CliffWalking and WindyGridworld as in Sutton & Barto, examples 6.6 and 6.5, with ε = 0.1 and
    # α = 0.5 at first, which then falls: a constant α keeps the values moving with each random
    # action (a fall costs 100), and where the last of them was a bad one the greedy path is longer
    # or ends against a wall. The others explore everything first, or step by less where chance has
    # a part.
    recipes={
        "CliffWalking-v1": {"steps": 20_000, "learning_rate_end": 0.0},
        "WindyGridworld-v0": {"steps": 20_000, "learning_rate_end": 0.0},
        "FrozenLake-v1": {
            "steps": 60_000,
            "learning_rate": 0.1,
            "epsilon": 1.0,
            "epsilon_end": 0.05,
            "discount": 0.99,
        },
        "Taxi-v4": {"steps": 80_000, "learning_rate": 0.3, "epsilon_end": 0.0},
        "Blackjack-v1": {
            "steps": 100_000,
            "learning_rate": 0.01,
            "epsilon": 1.0,
            "epsilon_end": 0.1,
            "eval_episodes": 2000,
        },
    },
)
