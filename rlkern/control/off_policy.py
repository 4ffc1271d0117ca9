# SPDX-License-Identifier: Apache-2.0
"""What off-policy algorithms share: act, remember, learn from samples of the memory."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from rlkern.control.environments import Environments
from rlkern.control.group import Settings
from rlkern.control.learner import Learner
from rlkern.control.networks import Encoder
from rlkern.control.replay import Replay
from rlkern.runs.device import resolve_device
from rlkern.runs.errors import UserError
from rlkern.runs.settings.types import Count, Counts, Positive, Share, Whole


class OffPolicySettings(Settings):
    """Settings of algorithms that learn from a memory of transitions."""

    hidden: Counts = (256, 256)
    """Units of the hidden layers, ReLU between them."""
    learning_rate: Positive = 3e-4
    """Step size of Adam."""
    discount: Share = 0.99
    """Discount γ."""
    buffer_size: Count = 1_000_000
    """Transitions that are kept; the oldest make room."""
    batch_size: Count = 256
    """Transitions of an update."""
    learning_starts: Whole = 100
    """Environment steps with random actions before the first update."""
    train_every: Count = 1
    """Environment steps between two rounds of updates."""
    updates: Count = 1
    """Updates of a round."""


class OffPolicy(Learner):
    """Takes a step in every copy, and after each `train_every` of them makes updates."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.device = resolve_device(settings.device)
        self.encoder = Encoder(environments, self.device)
        width = self.action_width()
        self.replay = Replay(settings.buffer_size, self.encoder.size, width, self.device)

    @classmethod
    def check(cls, settings: Any, environments: Environments) -> None:
        """Raises UserError for a device that is not there and a memory too small for the copies."""
        resolve_device(settings.device)
        if settings.buffer_size < settings.num_envs:
            raise UserError(
                f"buffer_size must be at least num_envs, {settings.num_envs}, got"
                f" {settings.buffer_size}"
            )

    @abstractmethod
    def action_width(self) -> int:
        """Returns how many numbers of the memory hold an action."""

    @abstractmethod
    def explore(self, observation: np.ndarray, random: bool) -> np.ndarray:
        """Returns actions (E, A) as the memory holds them, `random` ones before learning starts."""

    @abstractmethod
    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """Returns actions of the memory as the environment takes them."""

    @abstractmethod
    def update(self) -> None:
        """Learns from a sample."""

    @abstractmethod
    def losses(self) -> dict[str, float]:
        """Returns the measurements of the last update."""

    def iterate(self) -> dict[str, float]:
        """Takes a step in every copy; makes the updates that are due."""
        s, environments = self.settings, self.environments
        before = environments.steps
        observation = environments.observation
        action = self.explore(observation, before < s.learning_starts)
        found = environments.step(self.for_environment(action))
        self.replay.add(
            self.encoder.array(observation), action, self.encoder.array(found.next), found.reward,
            found.terminated,
        )  # fmt: skip
        now = environments.steps
        if now < s.learning_starts or now // s.train_every == before // s.train_every:
            return {}
        for _ in range(s.updates):
            self.update()
        return self.losses()

    def state(self) -> dict[str, Any]:
        """Returns the memory."""
        return {"replay": self.replay.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Puts it back."""
        self.replay.load(state["replay"])
