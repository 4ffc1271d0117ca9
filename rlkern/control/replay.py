# SPDX-License-Identifier: Apache-2.0
"""The memory of off-policy algorithms."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Transitions(NamedTuple):
    """A sample of B steps.

    joint        (B, D + A) observation and action beside each other, as critics read them
    observation  (B, D)
    action       (B, A)
    next         (B, D) the observation that the action led to, the true last one of an episode
    reward       (B,)
    terminated   (B,) bool: nothing comes after it. An episode that was cut off did not terminate
    """

    joint: Tensor
    observation: Tensor
    action: Tensor
    next: Tensor
    reward: Tensor
    terminated: Tensor


class Replay:
    """The last `capacity` transitions, one row of float32 each, so that a sample is one gather.

    >>> replay = Replay(2, 1, 1)
    >>> one = np.ones((1, 1), np.float32)
    >>> for reward in (1.0, 2.0, 3.0):
    ...     replay.add(one, one, one, np.array([reward]), np.array([False]))
    >>> sorted(replay.sample(np.random.default_rng(0), 64).reward.unique().tolist())
    [2.0, 3.0]
    """

    def __init__(
        self, capacity: int, observation: int, action: int, device: torch.device | None = None
    ) -> None:
        self._widths = [observation, action, observation, 1, 1]
        # The system gives memory to the rows that are written, not to all of them at once.
        self.rows = np.empty((capacity, sum(self._widths)), np.float32)
        self.device = device or torch.device("cpu")
        self._tensor = torch.from_numpy(self.rows)
        self.size = self.place = 0

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        following: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
    ) -> None:
        """Puts a row for each copy over the oldest."""
        count, capacity = len(reward), len(self.rows)
        whole = np.concatenate(
            [observation, action, following, reward[:, None], terminated[:, None]], axis=1
        )
        if self.place + count <= capacity:
            self.rows[self.place : self.place + count] = whole
        else:
            self.rows[(self.place + np.arange(count)) % capacity] = whole
        self.place = (self.place + count) % capacity
        self.size = min(self.size + count, capacity)

    def sample(self, rng: np.random.Generator, count: int) -> Transitions:
        """Returns rows drawn with replacement."""
        index = torch.from_numpy(rng.integers(self.size, size=count))
        rows = self._tensor.index_select(0, index).to(self.device)
        observation, action, following, reward, terminated = rows.split(self._widths, 1)
        joint = rows[:, : self._widths[0] + self._widths[1]]
        return Transitions(
            joint, observation, action, following, reward.squeeze(1), terminated.squeeze(1) != 0
        )

    def state(self) -> dict[str, Any]:
        """Returns the rows that are there."""
        return {"rows": self.rows[: self.size], "place": self.place}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        self.size, self.place = len(state["rows"]), state["place"]
        self.rows[: self.size] = state["rows"]
