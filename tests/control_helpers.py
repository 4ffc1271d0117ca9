# SPDX-License-Identifier: Apache-2.0
"""Environments made by hand, and runs of the control suite in a folder of the test's own."""

import io

import gymnasium
import numpy as np
from gymnasium import spaces
from rich.console import Console

from rlkern.control import of, train
from rlkern.control.show import Display


class Countdown(gymnasium.Env):
    """Counts steps and terminates after `last` of them.

    The observation is the number of steps taken, as a vector; the reward is 1.
    """

    metadata = {"render_modes": []}

    def __init__(self, last: int = 3, continuous: bool = False) -> None:
        self.observation_space = spaces.Box(0.0, 100.0, (1,), np.float32)
        self.action_space = (
            spaces.Box(-1.0, 1.0, (1,), np.float32) if continuous else spaces.Discrete(2)
        )
        self._last, self._count = last, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._count += 1
        seen = np.full(1, self._count, np.float32)
        return seen, 1.0, self._count >= self._last, False, {}


class Unrepeatable(Countdown):
    """Begins anywhere, whatever the seed."""

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed)
        return np.random.default_rng().random(1, np.float32), info


class Aim(gymnasium.Env):
    """Shows ten numbers from 0 to 1 in turn, and pays up to 1 for each that the action meets.

    Of two actions the second belongs to the numbers above one half; a continuous action must be
    twice the number less 1.
    """

    metadata = {"render_modes": []}

    def __init__(self, continuous: bool = False) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        box = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = box if continuous else spaces.Discrete(2)
        self._continuous, self._count = continuous, 0
        self._right = 0.0

    def _show(self):
        shown = self.np_random.random(1, np.float32)
        self._right = 2.0 * float(shown[0]) - 1.0
        return shown

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._count = 0
        return self._show(), {}

    def step(self, action):
        self._count += 1
        right = self._right
        miss = abs(float(action[0]) - right) if self._continuous else float(action != (right > 0))
        return self._show(), 1.0 - miss, self._count >= 10, False, {}


for name, entry, most in (
    ("Aim-v0", Aim, None),
    ("Countdown-v0", Countdown, None),
    ("Truncated-v0", Countdown, 2),
    ("Unrepeatable-v0", Unrepeatable, None),
):
    if name not in gymnasium.registry:
        gymnasium.register(name, entry, max_episode_steps=most)


def quiet() -> Display:
    """Returns a display that prints nothing."""
    return Display(Console(file=io.StringIO()))


def run(folder, *, resume: bool = False, **settings) -> dict:
    """Returns the summary of a run in a folder."""
    return train(of(output_dir=str(folder), **settings), resume=resume, display=quiet())
