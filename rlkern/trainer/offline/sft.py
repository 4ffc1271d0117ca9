# SPDX-License-Identifier: Apache-2.0
"""The supervised stage: right answers as rollouts, through the same loss call as the reinforcement
learning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

import rlkern
from rlkern.trainer.batch import Batch
from rlkern.trainer.evaluate import accuracy
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.offline.given import given_rollout
from rlkern.trainer.processes.parallel import spread
from rlkern.trainer.rollout.data import Rollout
from rlkern.trainer.rollout.turns import without_replies
from rlkern.trainer.session import Session
from rlkern.trainer.step import Losses, make_optimizer, optimizer_step
from rlkern.trainer.tasks.task import Item, Task


def gold_rollout(policy: Policy, items: list[Item], task: Task) -> Rollout:
    """Returns the right answers of items in the form of a rollout with one completion for each
    prompt.
    """
    answers = [item.answer + task.stop for item in items]
    given = given_rollout(policy, [item.prompt for item in items], answers, stop=task.stop)
    return without_replies(policy, given, items, task)


def right_answers(policy: Policy, items: list[Item], task: Task) -> Batch:
    """Returns the right answers of items as a batch of maximum likelihood."""
    rollout = gold_rollout(policy, items, task)
    weight = rlkern.aggregate.token_weight(rollout.mask, "token_mean")
    return Batch(rollout, torch.ones(len(items), device=policy.device), weight)


# REINFORCE with advantage 1 on given answers is maximum likelihood.
MAXIMUM_LIKELIHOOD: dict[str, Any] = {"algorithm": "reinforce", "temperature": 1.0}


# Training items that sft_target is measured on, and the steps between two measurements.
_TARGET_ITEMS, _TARGET_EVERY = 256, 10


def supervise(session: Session, *, after_step: Callable[[int, float], None]) -> None:
    """Train on right answers of training items; after_step(step, loss) is called after each step.

    Ends early when the accuracy on coming training items reaches sft_target: the step at which a
    small model understands a task differs much between seeds.
    """
    config, policy, task = session.config, session.policy, session.task
    settings = dataclasses.replace(
        config, **MAXIMUM_LIKELIHOOD, micro_batches=1, compare=None, lr=config.sft_lr
    )
    optimizer = make_optimizer(policy, None, settings)
    # Sharding comes later, with what trains then: every process still holds all weights.
    whole = dataclasses.replace(settings, parallel="ddp", critic_warmup=0)
    losses = spread(Losses(policy, None, settings), session.world, whole)
    position = 0
    for step in range(config.sft_steps or 0):
        items, position = task.next_items(position, config.sft_batch)
        batch = right_answers(policy, items, task)
        result = optimizer_step(
            losses, optimizer, batch, settings, {}, rates={"policy": 1.0}, world=session.world
        )
        after_step(step + 1, result.loss)
        if config.sft_target and (step + 1) % _TARGET_EVERY == 0:
            coming, _ = task.next_items(position, _TARGET_ITEMS)
            if _accuracy(session, coming) >= config.sft_target:
                break


def _accuracy(session: Session, items: list[Item]) -> float:
    return accuracy(
        session.policy,
        session.task,
        items,
        session.config,
        mode="sampled",
        stop=session.sampling.stop,
        max_new_tokens=session.sampling.max_new_tokens,
        world=session.world,
    )
