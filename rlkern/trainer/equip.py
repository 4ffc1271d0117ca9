# SPDX-License-Identifier: Apache-2.0
"""What a policy and a task become the parts of a run with, whether it trains or is measured."""

from __future__ import annotations

import torch

from rlkern.trainer.models.policy import Policy
from rlkern.trainer.parts import Parts
from rlkern.trainer.processes.world import World
from rlkern.trainer.progress import Progress
from rlkern.trainer.reward.functions import Rewards
from rlkern.trainer.rollout.engines import make_engine
from rlkern.trainer.rollout.fitting import fitted
from rlkern.trainer.rollout.text import stop_tokens
from rlkern.trainer.rollout.turns import sampling_of
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.reads import samples_answers
from rlkern.trainer.tasks.task import Task


def equipped(
    settings: Settings,
    task: Task,
    rewards: Rewards,
    world: World,
    policy: Policy,
    progress: Progress,
) -> Parts:
    """Returns the parts of a run, its task's rows as long as the policy reads them."""
    sampling = sampling_of(settings, task, stop_tokens(policy, task.stop))
    new = sampling.max_new_tokens if samples_answers(settings) else 0
    return Parts(
        settings=settings,
        task=fitted(task, policy, settings, new=new),
        rewards=rewards,
        sampling=sampling,
        world=world,
        policy=policy,
        engine=make_engine(settings, policy),
        generator=torch.Generator().manual_seed(settings.seed),
        progress=progress,
    )
