# SPDX-License-Identifier: Apache-2.0
"""What the off-policy actor–critics for continuous actions share: DDPG, TD3 and SAC."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import Parameter

import rlkern
from rlkern.control.environments import Environments, inside
from rlkern.control.networks import Mlp, Weights
from rlkern.control.off_policy import OffPolicy, OffPolicySettings
from rlkern.control.replay import Transitions
from rlkern.runs.settings.types import BelowOne, PositiveShare


class ContinuousSettings(OffPolicySettings):
    """Settings of DDPG, TD3 and SAC."""

    tau: PositiveShare = 0.005
    """Share of the networks that their targets take over after an update."""
    noise_correlation: BelowOne = 0.0
    """Correlation of the exploration's noise between two steps. The noise of one step is as large
    as without it, and far goals become reachable: DDPG's Ornstein–Uhlenbeck process (arXiv
    1509.02971, §3) in discrete time."""


class Critics:
    """Critics Q(s, a), copies of them that follow slowly, and the step that fits them."""

    def __init__(self, count: int, sizes: list[int], device: torch.device) -> None:
        self.online = [Mlp([*sizes, 1], torch.relu) for _ in range(count)]
        self.copies = [Mlp([*sizes, 1], torch.relu) for _ in range(count)]
        self.weights = Weights([p for each in self.online for p in each.parameters], device)
        self.target = Weights([p for each in self.copies for p in each.parameters], device)
        self.target.vector.data.copy_(self.weights.vector)

    def values(self, joint: Tensor) -> Tensor:
        """Returns Q(s, a) of each critic, (C, B)."""
        return torch.stack([each(joint).squeeze(1) for each in self.online])

    def fit(self, rows: Transitions, next_joint: Tensor, bonus: Tensor | None, discount: float):
        """Returns rlkern.td_loss after a step of all critics towards the same target.

            y = r + γ·(1 − terminated)·(min_c Q⁻_c(s', a') + bonus)

        The critics' rows stand below each other, a table of one action. Each critic's loss is
        mean(½·(Q − y)²), and these add up.
        """
        count = len(self.online)
        with torch.no_grad():
            later = [each(next_joint) for each in self.copies]
            if bonus is not None:
                later = [each + bonus[:, None] for each in later]
        q = torch.cat([each(rows.joint) for each in self.online])
        # The second table of a single critic is the first again.
        first, second = (each.repeat(count, 1) for each in (later[0], later[-1]))
        out = rlkern.td_loss(
            q, torch.zeros(len(q), dtype=torch.int64, device=q.device), rows.reward.repeat(count),
            rows.terminated.repeat(count), first, second_next_q=second, bootstrap="twin_min",
            discount=discount, kind="squared",
        )  # fmt: skip
        self.weights.step(count * out.loss)
        return out

    def follow(self, tau: float) -> None:
        """Moves the copies a little towards the critics."""
        self.target.follow(self.weights, tau)

    def state(self) -> dict[str, Any]:
        """Returns critics, copies and the optimizer's state."""
        return {"weights": self.weights.state(), "target": self.target.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        self.weights.load(state["weights"])
        self.target.load(state["target"])


class ContinuousActorCritic(OffPolicy):
    """An actor whose actions are in [−1, 1], which the memory holds, and critics.

    critics  how many critics there are; the smallest of their values is the target
    """

    critics: int
    actor: Mlp
    actor_weights: Weights

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        space = environments.actions
        assert isinstance(space, spaces.Box)
        self.space = space
        sizes = [self.encoder.size + self.action_width(), *settings.hidden]
        self.critic = Critics(self.critics, sizes, self.device)
        self.critic.weights.adam(settings.learning_rate)
        self.noise = np.zeros((len(environments), self.action_width()), np.float32)
        self.measured_losses: dict[str, Tensor] = {}

    def actor_of(self, outputs: int) -> Mlp:
        """Returns a network from observations to what the actor needs."""
        return Mlp([self.encoder.size, *self.settings.hidden, outputs], torch.relu)

    def trained(self, actor: Mlp, *others: Parameter) -> Weights:
        """Returns the actor's parameters and others, with their optimizer."""
        weights = Weights([*actor.parameters, *others], self.device)
        return weights.adam(self.settings.learning_rate)

    def action_width(self) -> int:
        """Returns how many numbers an action has."""
        return int(np.prod(self.environments.actions.shape or (1,)))

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """Returns actions between the bounds."""
        shaped = action.reshape(-1, *self.space.shape)
        low, high = self.space.low, self.space.high
        return inside(self.space, low + 0.5 * (shaped + 1.0) * (high - low))

    def next_noise(self) -> np.ndarray:
        """Returns noise of variance 1, correlated over time as the settings say."""
        c = self.settings.noise_correlation
        fresh = self.rng.standard_normal(self.noise.shape, np.float32)
        self.noise = c * self.noise + np.float32(math.sqrt(1.0 - c * c)) * fresh
        return self.noise

    def explore(self, observation: np.ndarray, random: bool) -> np.ndarray:
        """Returns (E, A) in [−1, 1]."""
        noise = self.next_noise()
        if random:
            return self.random_action(noise)
        with torch.inference_mode():
            outputs = self.actor(self.encoder(observation))
            return self.noisy(outputs, torch.from_numpy(noise).to(self.device)).cpu().numpy()

    def random_action(self, noise: np.ndarray) -> np.ndarray:
        """Returns actions distributed evenly over [−1, 1], as correlated as the noise.

        The normal distribution function of normal noise is distributed evenly.
        """
        even = torch.special.ndtr(torch.from_numpy(noise)).numpy()
        return 2.0 * even - 1.0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the actions without noise."""
        with torch.inference_mode():
            outputs = self.actor(self.encoder(observation))
            action = self.noisy(outputs, torch.zeros((), device=self.device))
        return self.for_environment(action.cpu().numpy())

    @abstractmethod
    def noisy(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Returns the actions that an actor's outputs and noise of variance 1 make."""

    def normal(self, shape: torch.Size) -> Tensor:
        """Returns normal noise, drawn on the host, whose generator a checkpoint holds."""
        return torch.randn(shape).to(self.device)

    def losses(self) -> dict[str, float]:
        """Returns the measurements of the last update."""
        return {key: value.item() for key, value in self.measured_losses.items()}

    def state(self) -> dict[str, Any]:
        """Returns memory, networks, optimizers and the noise."""
        actor = self.actor_weights.state()
        return {
            **super().state(), "actor": actor, "critic": self.critic.state(), "noise": self.noise
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.actor_weights.load(state["actor"])
        self.critic.load(state["critic"])
        self.noise = state["noise"]
