# SPDX-License-Identifier: Apache-2.0
"""DDPG: a critic learns the value of actions, a deterministic actor climbs it.

    y = r + γ·Q⁻(s', μ⁻(s'))        critic  mean((Q(s, a) − y)²)        actor  −mean(Q(s, μ(s)))

Paper: arXiv 1509.02971, algorithm 1. The critic's loss has a factor ½ here: it is the library's
squared, and Adam does not see a factor.

>>> import torch, rlkern
>>> later = torch.tensor([[2.0]])
>>> out = rlkern.td_loss(torch.tensor([[1.0]]), torch.tensor([0]), torch.tensor([1.0]),
...                      torch.tensor([False]), later, discount=0.5, kind="squared")
>>> out.error.item(), out.loss.item()                   # y = 1 + 0.5·2, ½·1²
(1.0, 0.5)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlkern.control.continuous import ContinuousActorCritic, ContinuousSettings
from rlkern.control.declaration import BOX, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.networks import Weights
from rlkern.control.replay import Transitions
from rlkern.runs.settings.types import Counts, NotNegative, Positive


class DDPGSettings(ContinuousSettings):
    """Settings of DDPG; the defaults are those of Stable-Baselines3 with rl-baselines3-zoo's
    noise."""

    hidden: Counts = (400, 300)
    """Units of the hidden layers, ReLU between them (arXiv 1509.02971, §7)."""
    learning_rate: Positive = 1e-3
    """Step size of Adam, of actor and critic."""
    noise: NotNegative = 0.1
    """Spread of the exploration's noise; the actions reach from −1 to 1."""


class DDPG(ContinuousActorCritic):
    """A deterministic actor, one critic, and slow copies of both."""

    critics = 1

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.actor = self.actor_of(self.action_width())
        self.target_actor = self.actor_of(self.action_width())
        self.actor_weights = self.trained(self.actor)
        self.target_actor_weights = Weights(self.target_actor.parameters, self.device)
        self.target_actor_weights.vector.data.copy_(self.actor_weights.vector)
        self.made = 0

    def noisy(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Returns μ(s) with noise, in [−1, 1]."""
        return (torch.tanh(outputs) + self.settings.noise * noise).clamp(-1.0, 1.0)

    def next_action(self, rows: Transitions) -> Tensor:
        """Returns what the target actor does in the next states."""
        return torch.tanh(self.target_actor(rows.next))

    def actor_is_due(self) -> bool:
        """Returns whether this update moves the actor and the targets: always."""
        return True

    def update(self) -> None:
        """Fits the critics, then moves actor and targets where they are due."""
        s = self.settings
        rows = self.replay.sample(self.rng, s.batch_size)
        self.made += 1
        with torch.no_grad():
            next_joint = torch.cat([rows.next, self.next_action(rows)], 1)
        fit = self.critic.fit(rows, next_joint, None, s.discount)
        self.measured_losses = {"losses/td_loss": fit.loss}
        if not self.actor_is_due():
            return
        action = torch.tanh(self.actor(rows.observation))
        q = self.critic.online[0](torch.cat([rows.observation, action], 1)).mean()
        self.actor_weights.step(-q)
        self.critic.follow(s.tau)
        self.target_actor_weights.follow(self.actor_weights, s.tau)
        self.measured_losses |= {"losses/policy_loss": -q, "losses/q_values": q}

    def state(self) -> dict[str, Any]:
        """Returns also the target actor and the number of updates."""
        target = self.target_actor_weights.state()
        return {**super().state(), "target_actor": target, "made": self.made}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.target_actor_weights.load(state["target_actor"])
        self.made = state["made"]


ALGORITHM = ControlAlgorithm(
    name="ddpg",
    paper="arXiv 1509.02971, algorithm 1",
    learns="actor–critic",
    on_policy=False,
    observations=BOX,
    actions=(BOX,),
    settings=DDPGSettings,
    learner=DDPG,
    # rl-baselines3-zoo, hyperparams/ddpg.yml.
    recipes={
        "Pendulum-v1": {
            "steps": 20_000, "buffer_size": 200_000, "discount": 0.98, "learning_starts": 10_000,
        },
    },
    quick={"hidden": [32, 32], "train_every": 4},
)  # fmt: skip
