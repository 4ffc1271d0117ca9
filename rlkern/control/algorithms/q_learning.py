# SPDX-License-Identifier: Apache-2.0
"""Q-learning: the value of an action is moved to the reward and the best value after it.

    Q(s, a) ← Q(s, a) + α·(r + γ·max_a' Q(s', a') − Q(s, a))

Paper: Watkins 1989; Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 6.8. It learns the greedy
policy's values while it explores (off policy), so on CliffWalking it learns the path along the
edge.

>>> import numpy as np
>>> q = np.array([[0.0, 0.0], [2.0, 4.0]])
>>> float(updated(q, Transition(0, 1, 1.0, 1, False), learning_rate=0.5, discount=0.9))
4.6
>>> q[0].tolist()                                       # 0 + 0.5·(1 + 0.9·4 − 0)
[0.0, 2.3]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.tabular import OneStep, TabularSettings
from rlkern.control.updates import Transition, moved, one_step


def updated(q: np.ndarray, step: Transition, *, learning_rate: Any, discount: float) -> Any:
    """Returns the temporal-difference error after moving Q(s, a) by α times it."""
    target = one_step(step, q[step.following].max(-1), discount)
    return moved(q, (step.state, step.action), target, learning_rate)


class QLearning(OneStep):
    """One step, one update."""

    def learn(self, step: Transition) -> float:
        """Returns the error."""
        s = self.settings
        return updated(self.q, step, learning_rate=self.learning_rate, discount=s.discount)


ALGORITHM = ControlAlgorithm(
    name="q_learning",
    paper="Watkins 1989; Sutton & Barto 2018, eq. 6.8",
    learns="value",
    on_policy=False,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=TabularSettings,
    learner=QLearning,
    # CliffWalking and WindyGridworld as in Sutton & Barto, examples 6.6 and 6.5, with ε = 0.1. The
    # others explore everything first, or step by less where chance has a part.
    recipes={
        "CliffWalking-v1": {"steps": 20_000},
        "WindyGridworld-v0": {"steps": 20_000},
        "FrozenLake-v1": {
            "steps": 60_000,
            "learning_rate": 0.1,
            "epsilon": 1.0,
            "epsilon_end": 0.05,
            "discount": 0.99,
        },
        "Taxi-v4": {"steps": 60_000},
        "Blackjack-v1": {
            "steps": 100_000,
            "learning_rate": 0.01,
            "epsilon": 1.0,
            "epsilon_end": 0.1,
            "eval_episodes": 2000,
        },
    },
)
