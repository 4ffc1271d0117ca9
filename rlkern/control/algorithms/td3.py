# SPDX-License-Identifier: Apache-2.0
"""TD3: DDPG with two critics, a noisy target action, and an actor that moves less often.

    y = r + γ·min_c Q⁻_c(s', a')     a' = clip(μ⁻(s') + clip(σ·ε, −c, c), −1, 1)
    critics  mean((Q_c(s, a) − y)²)  actor, every second update  −mean(Q_1(s, μ(s)))

Paper: arXiv 1802.09477, algorithm 1. The targets move when the actor does.

>>> import torch
>>> noise = torch.tensor([[1.0], [-9.0], [9.0]])
>>> smoothed(torch.tensor([[0.0], [0.0], [0.9]]), noise, scale=0.25, bound=0.5).tolist()
[[0.25], [-0.5], [1.0]]
"""

from __future__ import annotations

from torch import Tensor

from rlkern.control.algorithms.ddpg import DDPG, DDPGSettings
from rlkern.control.declaration import BOX, ControlAlgorithm
from rlkern.control.replay import Transitions
from rlkern.runs.settings.types import Count, NotNegative


def smoothed(action: Tensor, noise: Tensor, *, scale: float, bound: float) -> Tensor:
    """Returns clip(action + clip(scale·noise, −bound, bound), −1, 1), arXiv 1802.09477, eq. 14."""
    return (action + (scale * noise).clamp(-bound, bound)).clamp(-1.0, 1.0)


class TD3Settings(DDPGSettings):
    """Settings of TD3; the defaults are those of Stable-Baselines3 and of the paper's §6.1."""

    policy_every: Count = 2
    """Updates of the critics for one of the actor and the targets."""
    target_noise: NotNegative = 0.2
    """Spread of the noise of the target action."""
    target_noise_clip: NotNegative = 0.5
    """Largest noise of the target action."""


class TD3(DDPG):
    """A deterministic actor, two critics."""

    critics = 2

    def next_action(self, rows: Transitions) -> Tensor:
        """Returns the target actor's actions with noise."""
        s = self.settings
        action = super().next_action(rows)
        noise = self.normal(action.shape)
        return smoothed(action, noise, scale=s.target_noise, bound=s.target_noise_clip)

    def actor_is_due(self) -> bool:
        """Returns whether this update moves the actor and the targets."""
        return self.made % self.settings.policy_every == 0


ALGORITHM = ControlAlgorithm(
    name="td3",
    paper="arXiv 1802.09477, algorithm 1",
    learns="actor–critic",
    on_policy=False,
    observations=BOX,
    actions=(BOX,),
    settings=TD3Settings,
    learner=TD3,
    # rl-baselines3-zoo, hyperparams/td3.yml.
    recipes={
        "Pendulum-v1": {
            "steps": 20_000, "buffer_size": 200_000, "discount": 0.98, "learning_starts": 10_000,
        },
    },
    quick={"hidden": [32, 32], "train_every": 4},
)  # fmt: skip
