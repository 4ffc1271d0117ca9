# SPDX-License-Identifier: Apache-2.0
"""Double Q-learning: one table chooses the best action after a step, another one says its value.

    Q₁(s, a) ← Q₁(s, a) + α·(r + γ·Q₂(s', argmax_a' Q₁(s', a')) − Q₁(s, a))

and with equal chance the same with the tables exchanged. It acts by their mean.

Paper: van Hasselt 2010, algorithm 1; Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 6.10. The
largest of noisy values is too large on average; the value that a second table gives to it is not.

>>> import numpy as np
>>> q, other = np.array([[0.0, 0.0], [2.0, 4.0]]), np.array([[0.0, 0.0], [3.0, 1.0]])
>>> float(updated(q, other, Transition(0, 1, 1.0, 1, False), learning_rate=0.5, discount=0.5))
1.5
>>> q[0].tolist(), other[0].tolist()                    # 0 + 0.5·(1 + 0.5·1 − 0), untouched
([0.0, 0.75], [0.0, 0.0])
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.tabular import OneStep, TabularSettings
from rlkern.control.updates import Transition, moved, one_step


def updated(
    q: np.ndarray, other: np.ndarray, step: Transition, *, learning_rate: float, discount: float
) -> Any:
    """Returns the temporal-difference error after moving Q(s, a) by α times it."""
    best = q[step.following].argmax(-1)
    target = one_step(step, other[step.following, best], discount)
    return moved(q, (step.state, step.action), target, learning_rate)


class DoubleQLearning(OneStep):
    """One step, one update of one of the tables."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.other = self.q.copy()

    def values(self, state: Any) -> np.ndarray:
        """Returns the means of the two tables."""
        return (self.q[state] + self.other[state]) / 2

    def learn(self, step: Transition) -> float:
        """Returns the error."""
        s = self.settings
        q, other = (self.q, self.other) if self.rng.random() < 0.5 else (self.other, self.q)
        return updated(q, other, step, learning_rate=self.learning_rate, discount=s.discount)

    def state(self) -> dict[str, Any]:
        """Returns both tables."""
        return {**super().state(), "other": self.other}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.other = state["other"]


ALGORITHM = ControlAlgorithm(
    name="double_q_learning",
    paper="van Hasselt 2010, algorithm 1; Sutton & Barto 2018, eq. 6.10",
    learns="value",
    on_policy=False,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=TabularSettings,
    learner=DoubleQLearning,
    # CliffWalking and WindyGridworld as in Sutton & Barto, examples 6.6 and 6.5, with ε = 0.1. The
    # others explore everything first, or step by less where chance has a part.
    recipes={
        "CliffWalking-v1": {"steps": 40_000},
        "WindyGridworld-v0": {"steps": 40_000},
        "FrozenLake-v1": {
            "steps": 60_000,
            "learning_rate": 0.1,
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
