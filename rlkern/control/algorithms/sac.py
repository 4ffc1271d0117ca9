# SPDX-License-Identifier: Apache-2.0
"""SAC: an actor–critic that maximises the return and the entropy of its policy.

    y = r + γ·(min_c Q⁻_c(s', a') − α·log π(a'|s'))          a' ~ π(·|s')
    critics  mean(½·(Q_c(s, a) − y)²)          actor  mean(α·log π(a|s) − min_c Q_c(s, a)),  a ~ π
    α        −log α·mean(log π(a|s) + H̄)       H̄ = −(numbers of an action)

Paper: arXiv 1812.05905, eq. 5, 7 and 18 (with log α for α, as the authors' code); twin critics as
in its §5. The temperature sees the log-probability as a constant. Actor and temperature take one
step of one optimizer, so that the actor's step has the α of before.

>>> import torch, rlkern
>>> q1, q2, logprob = torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([-3.0])
>>> bonus = -0.5 * logprob[:, None]                     # α = 0.5: 1.5 for the entropy
>>> out = rlkern.td_loss(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([1.0]),
...                      torch.tensor([False]), q1 + bonus, second_next_q=q2 + bonus,
...                      bootstrap="twin_min", discount=0.5, kind="squared")
>>> out.error.item()                                    # y = 1 + 0.5·(1 + 1.5)
2.25
>>> temperature_loss(torch.tensor(0.5), torch.tensor([-3.0, 1.0]), target_entropy=-1.0).item()
1.0
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlkern.control.continuous import ContinuousActorCritic, ContinuousSettings
from rlkern.control.declaration import BOX, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.squashed import squashed
from rlkern.runs.settings.types import Positive

# Bounds of log σ, those of the authors' code.
_LOG_STD = (-20.0, 2.0)


def temperature_loss(log_alpha: Tensor, logprob: Tensor, *, target_entropy: float) -> Tensor:
    """Returns −log α·mean(log π + H̄), with log π a constant.

    >>> temperature_loss(torch.tensor(2.0), torch.tensor([0.5]), target_entropy=-1.0).item()
    1.0
    """
    return -log_alpha * (logprob.detach() + target_entropy).mean()


class SACSettings(ContinuousSettings):
    """Settings of SAC; the defaults are those of Stable-Baselines3."""

    alpha: Positive = 1.0
    """Weight α of the entropy at the start."""
    learn_alpha: bool = True
    """Move α so that the entropy becomes target_entropy; false keeps it."""
    target_entropy: float | None = None
    """Entropy that α aims at; null is minus the numbers of an action (arXiv 1812.05905,
    appendix D)."""


class SAC(ContinuousActorCritic):
    """A stochastic actor, two critics, a temperature."""

    critics = 2

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.actor = self.actor_of(2 * self.action_width())
        self.log_alpha = Parameter(torch.tensor(math.log(settings.alpha)))
        others = [self.log_alpha] if settings.learn_alpha else []
        self.actor_weights = self.trained(self.actor, *others)
        given = settings.target_entropy
        self.target_entropy = -float(self.action_width()) if given is None else given

    def drawn(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns actions and their log-probabilities."""
        mean, log_std = outputs.chunk(2, -1)
        return squashed(mean, log_std.clamp(*_LOG_STD), noise)

    def noisy(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Returns tanh(mean + std·noise)."""
        return self.drawn(outputs, noise)[0]

    def sampled(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Returns new actions for observations, and their log-probabilities."""
        noise = self.normal(torch.Size((len(observation), self.action_width())))
        return self.drawn(self.actor(observation), noise)

    def update(self) -> None:
        """Fits the critics, then moves actor and temperature, then the targets."""
        s = self.settings
        rows = self.replay.sample(self.rng, s.batch_size)
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            later, logprob = self.sampled(rows.next)
            next_joint, bonus = torch.cat([rows.next, later], 1), -alpha * logprob
        fit = self.critic.fit(rows, next_joint, bonus, s.discount)
        action, logprob = self.sampled(rows.observation)
        q = self.critic.values(torch.cat([rows.observation, action], 1)).amin(0)
        loss = (alpha * logprob - q).mean()
        heat = temperature_loss(self.log_alpha, logprob, target_entropy=self.target_entropy)
        self.actor_weights.step(loss + heat if s.learn_alpha else loss)
        self.critic.follow(s.tau)
        self.measured_losses = {
            "losses/policy_loss": loss, "losses/td_loss": fit.loss, "losses/q_values": q.mean(),
            "losses/alpha": alpha, "losses/alpha_loss": heat, "losses/entropy": -logprob.mean(),
        }  # fmt: skip


ALGORITHM = ControlAlgorithm(
    name="sac",
    paper="arXiv 1812.05905, eq. 5, 7 and 18",
    learns="actor–critic",
    on_policy=False,
    observations=BOX,
    actions=(BOX,),
    settings=SACSettings,
    learner=SAC,
    recipes={
        # rl-baselines3-zoo, hyperparams/sac.yml.
        "Pendulum-v1": {"steps": 20_000, "learning_rate": 1e-3},
        # Ours, where the zoo has a state-dependent noise: with noise that lasts, a few episodes of
        # random actions reach the goal, and the memory then teaches how.
        "MountainCarContinuous-v0": {
            "steps": 30_000, "hidden": [64, 64], "buffer_size": 50_000, "alpha": 0.1,
            "train_every": 32, "updates": 32, "tau": 0.01, "learning_starts": 5000,
            "noise_correlation": 0.95,
        },
    },
    quick={"hidden": [32, 32], "train_every": 4},
)  # fmt: skip
