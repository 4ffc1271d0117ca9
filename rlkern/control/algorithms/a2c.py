# SPDX-License-Identifier: Apache-2.0
"""A2C: several copies take a few steps, then one step of policy gradient with a value function.

    loss = mean(−A_t·log π(a_t|s_t) − entropy_coef·H_t) + value_coef·mean((V(s_t) − R_t)²)
    R_t = r_t + γ·r_{t+1} + … + γⁿ·V(s_{t+n})        A_t = R_t − V(s_t)

Paper: arXiv 1602.01783, §4 (A3C; A2C is its synchronous form). R_t stops at the end of an episode,
with V of its last state if it was cut off there. The losses are the library's a2c and full_squared.

>>> import torch, rlkern
>>> reward, value = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 1.0])
>>> out = rlkern.gae(reward, value, torch.ones(2).bool(), discount=0.5, gae_lambda=1.0,
...                  bootstrap=torch.tensor([2.0]), cu_seqlens=torch.tensor([0, 2]))
>>> out.target.tolist(), out.advantage.tolist()         # 1 + 0.5·1 + 0.25·2, and 1 + 0.5·2
([2.0, 2.0], [1.5, 1.0])
"""

from __future__ import annotations

from typing import Any

import torch

from rlkern.control.actor_critic import ActorCritic, ActorCriticSettings, actor_critic_metrics
from rlkern.control.declaration import BOX, DISCRETE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.runs.settings.types import Count, Positive, Share


class A2CSettings(ActorCriticSettings):
    """Settings of A2C; the defaults are those of Stable-Baselines3."""

    num_envs: Count = 8
    """Copies of the environment; rl-baselines3-zoo takes 8."""
    rollout: Count = 5
    """Steps of each copy between two updates (t_max of arXiv 1602.01783, §5.1)."""
    learning_rate: Positive = 7e-4
    """Step size of RMSProp."""
    gae_lambda: Share = 1.0
    """λ of the advantages: 1 is the paper's n-step return minus the value."""


class A2C(ActorCritic):
    """One rollout, one update."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        # Decay and eps as in the authors' code, which arXiv 1602.01783, §8 describes.
        self.weights.optimizer = torch.optim.RMSprop(
            [self.weights.vector], settings.learning_rate, alpha=0.99, eps=1e-5
        )

    def iterate(self) -> dict[str, float]:
        """Takes a few steps in every copy and learns from them once."""
        s = self.settings
        batch = self.collect()
        value = self.value(torch.cat([batch.observation, batch.after]))
        advantage, target = batch.estimates(value, discount=s.discount, gae_lambda=s.gae_lambda)
        policy = self.policy.loss(
            self.policy.outputs(batch.observation), batch.action, advantage, algorithm="a2c",
            entropy_coef=s.entropy_coef,
        )  # fmt: skip
        fit = self.value_loss(value[: len(target)], target)
        norm = self.weights.step(policy.loss + s.value_coef * fit.loss, s.max_grad_norm)
        return {**actor_critic_metrics(policy, fit), "losses/grad_norm": norm.item()}


ALGORITHM = ControlAlgorithm(
    name="a2c",
    paper="arXiv 1602.01783, §4",
    learns="actor–critic",
    on_policy=True,
    observations=BOX,
    actions=(DISCRETE, BOX),
    settings=A2CSettings,
    learner=A2C,
    # rl-baselines3-zoo, hyperparams/a2c.yml: 8 copies, 500 000 steps.
    recipes={"CartPole-v1": {"steps": 500_000}},
)
