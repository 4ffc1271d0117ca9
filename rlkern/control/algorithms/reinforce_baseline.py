# SPDX-License-Identifier: Apache-2.0
"""REINFORCE with a baseline: the return minus what the state was worth anyway.

    loss = −mean((G_t − V(s_t))·log π(a_t|s_t)) + value_coef·mean((V(s_t) − G_t)²)

Paper: Williams 1992, doi 10.1007/BF00992696, §4; Sutton & Barto 2018, §13.4. A baseline that does
not depend on the action leaves the gradient's expectation as it is and takes variance away. The
return of an episode that was cut off goes on with V of its last state. G − V is GAE at λ = 1, which
a test states.

>>> import torch, rlkern
>>> reward, mask = torch.tensor([[1.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
>>> value = torch.tensor([[1.0, 2.0]])
>>> out = rlkern.gae(reward, value, mask, discount=0.5, gae_lambda=1.0)
>>> out.target.tolist(), out.advantage.tolist()         # G = (1.5, 1), G − V
([[1.5, 1.0]], [[0.5, -1.0]])
"""

from __future__ import annotations

from typing import Any

import torch

from rlkern.control.actor_critic import ActorCritic, actor_critic_metrics
from rlkern.control.algorithms.reinforce import Reinforce, ReinforceSettings
from rlkern.control.declaration import BOX, DISCRETE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.rollout import Rollout, collect, whole_episodes
from rlkern.runs.settings.types import NotNegative


class ReinforceBaselineSettings(ReinforceSettings):
    """Settings of REINFORCE with a baseline."""

    value_coef: NotNegative = 0.5
    """Weight of the value function's mean squared error."""


class ReinforceBaseline(ActorCritic):
    """Whole episodes, one update."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.weights.adam(settings.learning_rate)

    @classmethod
    def check(cls, settings: Any, environments: Environments) -> None:
        """Raises UserError for several copies, whose episodes end at different times."""
        Reinforce.check(settings, environments)

    def collect(self) -> Rollout:
        """Returns whole episodes."""
        s = self.settings
        over = whole_episodes(self.environments, s.episodes, longest=s.steps)
        return collect(self.environments, self.policy, self.encoder, over)

    def iterate(self) -> dict[str, float]:
        """Plays episodes and learns from them."""
        s = self.settings
        batch = self.collect()
        value = self.value(torch.cat([batch.observation, batch.after]))
        advantage, target = batch.estimates(value, discount=s.discount, gae_lambda=1.0)
        outputs = self.policy.outputs(batch.observation)
        policy = self.policy.loss(outputs, batch.action, advantage, algorithm="reinforce")
        fit = self.value_loss(value[: len(target)], target)
        norm = self.weights.step(policy.loss + s.value_coef * fit.loss)
        return {**actor_critic_metrics(policy, fit), "losses/grad_norm": norm.item()}


ALGORITHM = ControlAlgorithm(
    name="reinforce_baseline",
    paper="Williams 1992, doi 10.1007/BF00992696, §4; Sutton & Barto 2018, §13.4",
    learns="policy",
    on_policy=True,
    observations=BOX,
    actions=(DISCRETE, BOX),
    settings=ReinforceBaselineSettings,
    learner=ReinforceBaseline,
    recipes={"CartPole-v1": {"steps": 200_000}},
)
