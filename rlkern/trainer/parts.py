# SPDX-License-Identifier: Apache-2.0
"""The parts of a run, made once by rlkern.trainer.build and then only read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlkern.trainer.critic import Critic
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.processes.world import World
from rlkern.trainer.progress import Progress
from rlkern.trainer.reward.functions import Rewards
from rlkern.trainer.reward.model import is_scorer
from rlkern.trainer.rollout.engines import Engine
from rlkern.trainer.rollout.sampler import Sampling
from rlkern.trainer.settings import Settings
from rlkern.trainer.tasks.task import Task


@dataclass(frozen=True)
class Parts:
    """What every step of a run reads. The weights, the generator and the progress move; nothing is
    replaced.

    reference is the starting model, None if nothing reads it; teacher and critic are None if there
    is none.
    """

    settings: Settings
    task: Task
    rewards: Rewards
    sampling: Sampling
    world: World
    policy: Policy
    engine: Engine
    generator: torch.Generator
    progress: Progress
    reference: Policy | None = None
    critic: Critic | None = None
    teacher: Policy | None = None

    def speakers(self) -> list[Policy]:
        """Returns the policy and its teacher, less a reward model, which has no head for words."""
        found = (self.policy, self.teacher)
        return [x for x in found if x is not None and not is_scorer(x)]

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Returns the weights that are trained, by name, those of the critic after a prefix."""
        critic = self.critic.parameters() if self.critic is not None else {}
        return {**self.policy.parameters(), **{f"critic.{k}": p for k, p in critic.items()}}
