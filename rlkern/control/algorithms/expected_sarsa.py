# SPDX-License-Identifier: Apache-2.0
"""Expected SARSA: the value of an action is moved to the reward and the mean value after it.

    Q(s, a) ← Q(s, a) + α·(r + γ·Σ_a' π(a'|s')·Q(s', a') − Q(s, a))

Paper: van Seijen et al. 2009; Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 6.9. π is the
ε-greedy policy that acts. The mean takes the chance of a' out of SARSA's target; with ε = 0 it is
Q-learning.

>>> import numpy as np
>>> q = np.array([[0.0, 0.0], [2.0, 4.0]])
>>> float(updated(q, Transition(0, 1, 1.0, 1, False), 0.5, learning_rate=0.5, discount=0.5))
2.75
>>> q[0].tolist()                                       # 1 + 0.5·(0.25·2 + 0.75·4), half of it
[0.0, 1.375]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.tabular import OneStep, TabularSettings, epsilon_greedy
from rlkern.control.updates import Transition, moved, one_step


def updated(
    q: np.ndarray, step: Transition, epsilon: float, *, learning_rate: float, discount: float
) -> Any:
    """Returns the temporal-difference error after moving Q(s, a) by α times it."""
    row = q[step.following]
    target = one_step(step, (epsilon_greedy(row, epsilon) * row).sum(-1), discount)
    return moved(q, (step.state, step.action), target, learning_rate)


class ExpectedSarsa(OneStep):
    """One step, one update."""

    def learn(self, step: Transition) -> float:
        """Returns the error."""
        s = self.settings
        return updated(
            self.q, step, self.epsilon, learning_rate=self.learning_rate, discount=s.discount
        )


ALGORITHM = ControlAlgorithm(
    name="expected_sarsa",
    paper="van Seijen et al. 2009; Sutton & Barto 2018, eq. 6.9",
    learns="value",
    on_policy=True,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=TabularSettings,
    learner=ExpectedSarsa,
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
