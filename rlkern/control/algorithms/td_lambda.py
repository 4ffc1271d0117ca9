# SPDX-License-Identifier: Apache-2.0
"""TD(λ): every temporal-difference error moves all the states that led to it.

    e ← γλ·e,  e(s) ← e(s) + 1
    V ← V + α·(r + γ·V(s') − V(s))·e

Paper: Sutton 1988; Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 12.5 to 12.7, with
accumulating traces, online: V changes at every step. If V were held fixed until the episode's end,
the sum of the moves would be that of the off-line λ-return,

    Σ_t α·δ_t·e_t(s) = Σ_{t: s_t = s} α·(G_t − V(s)),   G_t = rlkern.lambda_return

so the two part by the changes within an episode, more with a larger α. λ = 0 is TD(0), λ = 1 is
every-visit Monte Carlo up to those changes.

>>> import numpy as np
>>> v, trace = np.array([1.0, 4.0, 0.0]), np.array([0.0, 0.0, 1.0])
>>> step = Transition(0, 0, 2.0, 1, False)
>>> rates = {"learning_rate": 0.5, "discount": 0.5, "trace_decay": 0.5}
>>> float(updated(v, trace, step, **rates))             # 2 + 0.5·4 − 1
3.0
>>> trace.tolist(), v.tolist()                          # 1 + 0.5·3·1, 0 + 0.5·3·0.25
([1.0, 0.0, 0.25], [2.5, 4.0, 0.375])
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.prediction import StateValues, TemporalDifferenceSettings
from rlkern.control.updates import Transition, marked, one_step
from rlkern.runs.settings.types import Share


class TDLambdaSettings(TemporalDifferenceSettings):
    """Settings of TD(λ)."""

    trace_decay: Share = 0.8
    """λ: how much of a trace a step keeps, beside the discount; Sutton & Barto, fig. 12.6, find 0.8
    to 0.9 best."""


def updated(
    v: np.ndarray,
    trace: np.ndarray,
    step: Transition,
    *,
    learning_rate: Any,
    discount: float,
    trace_decay: float,
) -> Any:
    """Returns the temporal-difference error after moving V by α times it along the traces, which
    it brings up to date."""
    error = one_step(step, v[step.following], discount) - v[step.state]
    marked(trace, step.state, discount * trace_decay)
    v += learning_rate * error * trace
    return error


class TDLambda(StateValues):
    """One step, one update of the whole table; an episode begins without traces."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.trace = np.zeros_like(self.v)

    def learn(self, step: Transition, over: bool) -> float:
        """Returns the error."""
        s = self.settings
        error = updated(
            self.v, self.trace, step, learning_rate=s.learning_rate, discount=s.discount,
            trace_decay=s.trace_decay,
        )  # fmt: skip
        if over:
            self.trace[:] = 0.0
        return error

    def state(self) -> dict[str, Any]:
        """Returns the table and its traces."""
        return {**super().state(), "trace": self.trace}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.trace = state["trace"]


ALGORITHM = ControlAlgorithm(
    name="td_lambda",
    paper="Sutton 1988; Sutton & Barto 2018, eq. 12.5 to 12.7",
    learns="prediction",
    on_policy=True,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=TDLambdaSettings,
    learner=TDLambda,
    # Tasks, 0.5 and the policy of Blackjack as in Sutton & Barto, examples 6.2, 7.1 and 5.1; step
    # sizes small enough for the values to stay near the true ones.
    recipes={
        "RandomWalk5-v0": {"steps": 20_000, "initial_value": 0.5, "learning_rate": 0.005},
        "RandomWalk19-v0": {"steps": 200_000, "learning_rate": 0.005},
        "Blackjack-v1": {"steps": 100_000, "policy": "stick_on_20", "learning_rate": 0.01},
    },
)
