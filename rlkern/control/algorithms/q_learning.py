# SPDX-License-Identifier: Apache-2.0
"""Q-learning: the value of an action is moved to the reward and the best value after it.

    Q(s, a) ← Q(s, a) + α·(r + γ·max_a' Q(s', a') − Q(s, a))

Paper: Watkins 1989; Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 6.8. It learns the greedy
policy's values while it explores (off policy), so on CliffWalking it learns the path along the
edge.

>>> import numpy as np
>>> q = np.array([[0.0, 0.0], [2.0, 4.0]])
>>> updated(q, 0, 1, 1.0, 1, terminated=False, learning_rate=0.5, discount=0.9)
4.6
>>> q[0].tolist()                                       # 0 + 0.5·(1 + 0.9·4 − 0)
[0.0, 2.3]
"""

from __future__ import annotations

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.tabular import ActionValues, TabularSettings


def updated(
    q: np.ndarray,
    state: int,
    action: int,
    reward: float,
    following: int,
    *,
    terminated: bool,
    learning_rate: float,
    discount: float,
) -> float:
    """Returns the temporal-difference error after moving Q(s, a) by α times it."""
    later = 0.0 if terminated else float(q[following].max())
    error = reward + discount * later - float(q[state, action])
    q[state, action] += learning_rate * error
    return error


class QLearning(ActionValues):
    """One step, one update."""

    def iterate(self) -> dict[str, float]:
        """Takes a step and learns from it."""
        s = self.settings
        state = int(self.environments.observation[0])
        action = self.explore(state)
        found = self.environments.step(np.array([action]))
        error = updated(
            self.q, state, action, float(found.reward[0]), int(found.next[0]),
            terminated=bool(found.terminated[0]), learning_rate=s.learning_rate,
            discount=s.discount,
        )  # fmt: skip
        return {"losses/td_error": abs(error), "charts/epsilon": self.epsilon}


ALGORITHM = ControlAlgorithm(
    name="q_learning",
    paper="Watkins 1989; Sutton & Barto 2018, eq. 6.8",
    learns="value",
    on_policy=False,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=TabularSettings,
    learner=QLearning,
    # 500 episodes and ε, α as in Sutton & Barto, example 6.6.
    recipes={"CliffWalking-v1": {"steps": 20_000}},
)
