# SPDX-License-Identifier: Apache-2.0
"""REINFORCE: the gradient of log π, weighted by the return that followed.

    loss = −mean(G_t·log π(a_t|s_t))        G_t = r_t + γ·r_{t+1} + … to the end of the episode

Paper: Williams 1992, doi 10.1007/BF00992696; Sutton & Barto 2018, §13.3. As most code and unlike
the book it leaves out the factor γᵗ, so that late steps count as much as early ones. There is no
value function: the return of an episode that was cut off ends there. The loss is the library's
reinforce.

>>> import torch, rlkern
>>> reward, mask = torch.tensor([1.0, 1.0]), torch.ones(2, dtype=torch.bool)
>>> advantage = rlkern.discounted_return(reward, mask, discount=0.5)
>>> advantage.tolist()
[1.5, 1.0]
>>> logits = torch.zeros(2, 2)                          # log π = −log 2 = −0.6931
>>> out = rlkern.policy_loss(logits, torch.tensor([0, 1]), advantage, mask, algorithm="reinforce")
>>> round(out.loss.item(), 4)                           # (1.5 + 1)/2·0.6931
0.8664
"""

from __future__ import annotations

from typing import Any

import rlkern
from rlkern.control.actor_critic import PolicyLearner, PolicySettings
from rlkern.control.declaration import BOX, DISCRETE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.learner import one_copy
from rlkern.control.networks import Weights
from rlkern.control.rollout import collect, whole_episodes
from rlkern.runs.settings.types import Count, Positive


class ReinforceSettings(PolicySettings):
    """Settings of REINFORCE."""

    episodes: Count = 1
    """Episodes between two updates; the textbook updates after each."""
    learning_rate: Positive = 1e-3
    """Step size of Adam."""


class Reinforce(PolicyLearner):
    """Whole episodes, one update."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.weights = Weights(self.policy.parameters, self.device).adam(settings.learning_rate)

    @classmethod
    def check(cls, settings: Any, environments: Environments) -> None:
        """Raises UserError for several copies, whose episodes end at different times."""
        super().check(settings, environments)
        one_copy(settings, environments)

    def iterate(self) -> dict[str, float]:
        """Plays episodes and learns from them."""
        s = self.settings
        over = whole_episodes(self.environments, s.episodes, longest=s.steps)
        batch = collect(self.environments, self.policy, self.encoder, over)
        outputs = self.policy.outputs(batch.observation)
        out = self.policy.loss(
            outputs, batch.action, batch.returns(s.discount), algorithm="reinforce"
        )
        norm = self.weights.step(out.loss)
        return {
            "losses/policy_loss": out.loss.item(),
            "losses/entropy": rlkern.metrics_dict(out.metrics)["entropy"],
            "losses/grad_norm": norm.item(),
        }


ALGORITHM = ControlAlgorithm(
    name="reinforce",
    paper="Williams 1992, doi 10.1007/BF00992696; Sutton & Barto 2018, §13.3",
    learns="policy",
    on_policy=True,
    observations=BOX,
    actions=(DISCRETE, BOX),
    settings=ReinforceSettings,
    learner=Reinforce,
    recipes={"CartPole-v1": {"steps": 200_000}},
)
