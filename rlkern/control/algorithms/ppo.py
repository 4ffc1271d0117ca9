# SPDX-License-Identifier: Apache-2.0
"""PPO: several epochs over one rollout, with the ratio to the policy that took it clipped.

    loss = mean(−min(r·A, clip(r, 1 − ε, 1 + ε)·A) − entropy_coef·H) + value_coef·mean((V − R)²)
    r = π(a|s) / π_old(a|s)        A by GAE, whitened in each minibatch        R = A + V_old

Paper: arXiv 1707.06347, eq. 7 and 9, A by eq. 11; the whitening is that of the authors' code
(arXiv 2005.12729, §3). The losses are the library's ppo and full_squared; π_old and V_old are
computed for the whole rollout in one call, not step by step.

>>> import torch, rlkern
>>> logits, one = torch.zeros(1, 2), torch.ones(1)
>>> old = torch.log(torch.tensor([0.25]))
>>> out = rlkern.policy_loss(logits, torch.tensor([0]), one, one.bool(), old_logprob=old,
...                          algorithm="ppo", clip_low=0.2, clip_high=0.2)
>>> round(out.loss.item(), 4)                           # the ratio 0.5 / 0.25 is held at 1.2
-1.2
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.control.actor_critic import ActorCritic, ActorCriticSettings, actor_critic_metrics
from rlkern.control.declaration import BOX, DISCRETE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.policies import counted
from rlkern.runs.errors import UserError
from rlkern.runs.settings.types import Count, Positive


class PPOSettings(ActorCriticSettings):
    """Settings of PPO; the defaults are those of Stable-Baselines3."""

    batch_size: Count = 64
    """Steps of a minibatch; it must divide rollout·num_envs."""
    epochs: Count = 10
    """Passes over each rollout (arXiv 1707.06347, table 3)."""
    clip: Positive = 0.2
    """Half-width ε of the clip (arXiv 1707.06347, §6.1)."""
    anneal: bool = False
    """Lower learning rate and clip linearly to 0 at the last step, as the authors' code can."""

    @property
    def steps_matter(self) -> bool:
        """Whether an early step depends on how many there will be."""
        return self.anneal


class PPO(ActorCritic):
    """One rollout, epochs of minibatches."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        # eps of the authors' code; Adam's own is 1e-8.
        self.weights.adam(settings.learning_rate, eps=1e-5)

    @classmethod
    def check(cls, settings: Any, environments: Environments) -> None:
        """Raises UserError for minibatches of different sizes."""
        super().check(settings, environments)
        steps = settings.rollout * settings.num_envs
        if steps % settings.batch_size:
            raise UserError(
                f"batch_size must divide rollout·num_envs, {steps}, got {settings.batch_size}"
            )

    def iterate(self) -> dict[str, float]:
        """Takes a rollout and learns from it."""
        s = self.settings
        left = 1.0 - self.done if s.anneal else 1.0
        self.weights.set_learning_rate(s.learning_rate * left)
        batch = self.collect()
        with torch.no_grad():
            value = self.value(torch.cat([batch.observation, batch.after]))
            old = self.policy.logprob(self.policy.outputs(batch.observation), batch.action)
        advantage, target = batch.estimates(value, discount=s.discount, gae_lambda=s.gae_lambda)
        for part in self._parts(batch.observation, batch.action, old, advantage, target):
            policy, fit, norm = self._update(part, s.clip * left)
        held = rlkern.metrics_dict(policy.metrics)
        return {
            **actor_critic_metrics(policy, fit),
            "losses/approx_kl": held["old_kl"],
            "losses/clipfrac": held["clip_ratio/region_mean"],
            "losses/grad_norm": norm.item(),
            "charts/learning_rate": s.learning_rate * left,
        }

    def _parts(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yields the minibatches of all epochs."""
        for _ in range(self.settings.epochs):
            order = torch.randperm(len(rows[0])).to(self.device)
            # One gather for each epoch; the minibatches are then views.
            shuffled = [
                each.index_select(0, order).split(self.settings.batch_size) for each in rows
            ]
            yield from zip(*shuffled)

    def _update(self, part: tuple[Tensor, ...], clip: float):
        """Returns (policy loss, value loss, gradient norm) of a step on a minibatch."""
        s = self.settings
        observation, action, old, advantage, target = part
        mask, _ = counted(len(action), action.device)
        policy = self.policy.loss(
            self.policy.outputs(observation), action, rlkern.aggregate.whiten(advantage, mask),
            old_logprob=old, algorithm="ppo", clip_low=clip, clip_high=clip,
            entropy_coef=s.entropy_coef,
        )  # fmt: skip
        fit = self.value_loss(self.value(observation), target)
        norm = self.weights.step(policy.loss + s.value_coef * fit.loss, s.max_grad_norm)
        return policy, fit, norm


ALGORITHM = ControlAlgorithm(
    name="ppo",
    paper="arXiv 1707.06347, eq. 7",
    learns="actor–critic",
    on_policy=True,
    observations=BOX,
    actions=(DISCRETE, BOX),
    settings=PPOSettings,
    learner=PPO,
    # rl-baselines3-zoo, hyperparams/ppo.yml; for Pendulum without its state-dependent noise.
    recipes={
        "CartPole-v1": {
            "steps": 100_000, "num_envs": 8, "rollout": 32, "batch_size": 256, "epochs": 20,
            "gae_lambda": 0.8, "discount": 0.98, "learning_rate": 1e-3, "anneal": True,
        },
        "Acrobot-v1": {
            "steps": 400_000, "num_envs": 16, "rollout": 256, "epochs": 4, "gae_lambda": 0.94,
        },
        "Pendulum-v1": {
            "steps": 100_000, "num_envs": 4, "rollout": 1024, "discount": 0.9,
            "learning_rate": 1e-3,
        },
    },
    quick={"num_envs": 4, "rollout": 32, "epochs": 2},
)  # fmt: skip
