# SPDX-License-Identifier: Apache-2.0
"""First-visit Monte Carlo: the value of a state is the mean of the returns after its first visits.

    G_t = r_t + γ·G_{t+1}
    V(s_t) ← V(s_t) + (G_t − V(s_t))/n(s_t)   at the first visit in an episode

Paper: Singh & Sutton 1996; Sutton & Barto, Reinforcement Learning, 2nd ed., section 5.1, which
works out that returns of first visits are independent and their mean unbiased. A number as
`learning_rate` stands in place of 1/n. An episode that is cut off goes on, for its return, with the
value of its last state.

>>> import numpy as np
>>> v, count = np.zeros(2), np.zeros(2)
>>> states, reward = [0, 1, 0], [1.0, 2.0, 4.0]         # the returns are 3, 4 and 4
>>> _ = updated(v, count, states, reward, 0.0, learning_rate=None, discount=0.5)
>>> v.tolist()                                          # the second visit of state 0 counts nothing
[3.0, 4.0]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.prediction import MonteCarlo, MonteCarloSettings
from rlkern.control.updates import averaged, first_visits, returns


def updated(
    v: np.ndarray,
    count: np.ndarray,
    states: Sequence[int],
    reward: Sequence[float],
    later: float,
    *,
    learning_rate: float | None,
    discount: float,
) -> float:
    """Returns the mean size of the errors after moving the states of an episode to the
    returns of their first visits; `later` is the value of what follows its last step."""
    found = returns(reward, later, discount)
    errors = [averaged(v, count, states[t], found[t], learning_rate) for t in first_visits(states)]
    return float(np.abs(errors).mean())


class FirstVisit(MonteCarlo):
    """One episode, one update of its first visits."""

    def learn_episode(self, states: list[int], reward: list[float], later: float) -> float:
        """Returns the error."""
        s = self.settings
        return updated(
            self.v, self.count, states, reward, later,
            learning_rate=s.learning_rate, discount=s.discount,
        )  # fmt: skip


ALGORITHM = ControlAlgorithm(
    name="mc_first_visit",
    paper="Singh & Sutton 1996; Sutton & Barto 2018, section 5.1",
    learns="prediction",
    on_policy=True,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=MonteCarloSettings,
    learner=FirstVisit,
    # Tasks, 0.5 and the policy of Blackjack as in Sutton & Barto, examples 6.2, 7.1 and 5.1.
    recipes={
        "RandomWalk5-v0": {"steps": 20_000, "initial_value": 0.5},
        "RandomWalk19-v0": {"steps": 200_000},
        "Blackjack-v1": {"steps": 100_000, "policy": "stick_on_20"},
    },
)
