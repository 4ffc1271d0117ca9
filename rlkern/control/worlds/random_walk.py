# SPDX-License-Identifier: Apache-2.0
"""The random walk: a row of states, each step goes left or right by chance, both ends are terminal.

Source: Sutton & Barto, Reinforcement Learning, 2nd ed., example 6.2 (5 states, reward 0 on the left
and 1 on the right) and 7.1 (19 states, −1 and 1).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class RandomWalk(gymnasium.Env):
    """States 0 to n − 1, begun in the middle; the only action lets chance decide.

    `values` are the true values of the states without discount: with reward l on the left end and
    1 on the right, l + (1 − l)·(i + 1)/(n + 1).
    """

    metadata = {"render_modes": []}

    def __init__(self, states: int = 5, left_reward: float = 0.0) -> None:
        self.observation_space = spaces.Discrete(states)
        self.action_space = spaces.Discrete(1)
        self._states, self._left = states, left_reward
        self._place = 0
        share = np.arange(1, states + 1) / (states + 1)
        self.values = left_reward + (1.0 - left_reward) * share

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict]:
        """Returns the middle state."""
        super().reset(seed=seed)
        self._place = self._states // 2
        return self._place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        """Returns the next state; beyond an end the episode is over and the last state is shown."""
        self._place += 1 if self.np_random.random() < 0.5 else -1
        over = not 0 <= self._place < self._states
        reward = 0.0 if not over else 1.0 if self._place > 0 else self._left
        return min(max(self._place, 0), self._states - 1), reward, over, False, {}
