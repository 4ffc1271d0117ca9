# SPDX-License-Identifier: Apache-2.0
"""An environment that a table of its transitions defines, as gymnasium's toy_text do."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

# By state and action: the outcomes as (probability, next state, reward, whether it terminated).
Table = dict[int, dict[int, list[tuple[float, int, float, bool]]]]


class TableWorld(gymnasium.Env):
    """States and actions are numbers.

    P                      the transitions; gymnasium's toy_text have the same attribute
    initial_state_distrib  (S,) probabilities of the first state; theirs too
    """

    metadata = {"render_modes": []}

    def __init__(self, transitions: Table, start: int) -> None:
        self.P = transitions
        self.observation_space = spaces.Discrete(len(transitions))
        self.action_space = spaces.Discrete(len(transitions[start]))
        self.initial_state_distrib = np.eye(len(transitions))[start]
        self._start = self._place = start

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict]:
        """Returns the first state."""
        super().reset(seed=seed)
        self._place = self._start
        return self._place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        """Returns an outcome of the action; chance is drawn only where there are several."""
        outcomes = self.P[self._place][int(action)]
        chosen = 0
        if len(outcomes) > 1:
            below = np.cumsum([outcome[0] for outcome in outcomes])[:-1]
            chosen = int(np.searchsorted(below, self.np_random.random(), side="right"))
        _, self._place, reward, terminated = outcomes[chosen]
        return self._place, reward, terminated, False, {}
