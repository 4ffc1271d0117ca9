# SPDX-License-Identifier: Apache-2.0
"""SARSA(λ): every temporal-difference error moves all the actions that led to it.

    e ← γλ·e,  e(s, a) ← e(s, a) + 1
    Q ← Q + α·(r + γ·Q(s', a') − Q(s, a))·e

Paper: Rummery & Niranjan 1994; Sutton & Barto, Reinforcement Learning, 2nd ed., section 12.7, with
accumulating traces (its box has them for features of 0 and 1). λ = 0 is SARSA. A trace can grow to
1/(1 − γλ) where the same action is repeated, so α must be smaller than SARSA's.

>>> import numpy as np
>>> q, trace = np.array([[0.0, 0.0], [2.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])
>>> step = Transition(0, 1, 1.0, 1, False)
>>> rates = {"learning_rate": 0.5, "discount": 0.5, "trace_decay": 0.5}
>>> float(updated(q, trace, step, 0, **rates))          # 1 + 0.5·2 − 0
2.0
>>> trace[0].tolist(), q[0].tolist()                    # 0 + 0.5·2·0.25, 0 + 0.5·2·1
([0.25, 1.0], [0.25, 1.0])
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlkern.control.declaration import DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.tabular import NextAction, TabularSettings
from rlkern.control.updates import Transition, marked, one_step
from rlkern.runs.settings.types import PositiveShare, Share


class SarsaLambdaSettings(TabularSettings):
    """Settings of SARSA(λ)."""

    learning_rate: PositiveShare = 0.1
    """Step size α; smaller than without traces, which repeat a move."""
    trace_decay: Share = 0.9
    """λ: how much of a trace a step keeps, beside the discount; Sutton & Barto, fig. 12.10, find
    0.8 to 0.96 best."""


def updated(
    q: np.ndarray,
    trace: np.ndarray,
    step: Transition,
    following: Any,
    *,
    learning_rate: float,
    discount: float,
    trace_decay: float,
) -> Any:
    """Returns the temporal-difference error after moving Q by α times it along the traces, which
    it brings up to date; `following` is a'."""
    entry = step.state, step.action
    error = one_step(step, q[step.following, following], discount) - q[entry]
    marked(trace, entry, discount * trace_decay)
    q += learning_rate * error * trace
    return error


class SarsaLambda(NextAction):
    """One step, one update of the whole table; an episode begins without traces."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.trace = np.zeros_like(self.q)

    def learn(self, step: Transition, action: int, over: bool) -> float:
        """Returns the error."""
        s = self.settings
        error = updated(
            self.q, self.trace, step, action, learning_rate=self.learning_rate,
            discount=s.discount, trace_decay=s.trace_decay,
        )  # fmt: skip
        if over:
            self.trace[:] = 0.0
        return error

    def state(self) -> dict[str, Any]:
        """Returns the table, its traces and the action that is to be taken."""
        return {**super().state(), "trace": self.trace}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.trace = state["trace"]


ALGORITHM = ControlAlgorithm(
    name="sarsa_lambda",
    paper="Rummery & Niranjan 1994; Sutton & Barto 2018, section 12.7",
    learns="value",
    on_policy=True,
    observations=TABLE,
    actions=(DISCRETE,),
    settings=SarsaLambdaSettings,
    learner=SarsaLambda,
    # CliffWalking and WindyGridworld as in Sutton & Barto, examples 6.6 and 6.5, with ε = 0.1. The
    # others explore everything first, or step by less where chance has a part.
    recipes={
        "CliffWalking-v1": {"steps": 40_000, "learning_rate": 0.05},
        "WindyGridworld-v0": {"steps": 20_000},
        "FrozenLake-v1": {
            "steps": 60_000,
            "learning_rate": 0.03,
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
