# SPDX-License-Identifier: Apache-2.0
"""From prompts to rewarded answers, and which groups of them a step is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import rlkern
from rlkern.trainer.online.experience import Experience
from rlkern.trainer.reward import Scored, score_completions
from rlkern.trainer.rollout.data import Rollout, Sampling, concat, texts
from rlkern.trainer.rollout.engines import ModelEngine
from rlkern.trainer.rollout.sampler import random_numbers
from rlkern.trainer.rollout.turns import converse
from rlkern.trainer.tasks.task import Item

if TYPE_CHECKING:
    from rlkern.trainer.models.policy import Policy
    from rlkern.trainer.session import Session

Warn = Callable[[str], None]


def generate(
    session: Session, policy: Policy, items: list[Item], sampling: Sampling, group_size: int
) -> Rollout:
    """Returns group_size answers of a policy to each item, sampled by all processes together."""
    uniform = None
    if sampling.temperature > 0:
        uniform = random_numbers(session.generator, len(items) * group_size, sampling)
    asked = items
    if short := max(0, session.world.size - len(items)):
        # Every process needs something to sample; what is too much is left out below.
        asked = items + items[-1:] * short
        if uniform is not None:
            uniform = torch.cat([uniform, uniform[-group_size:].repeat(short, 1)])
    first, last = session.world.share(len(asked))
    engine = session.engine if policy is session.policy else ModelEngine(policy)
    engine.refresh()
    rollout = converse(
        engine,
        session.task,
        asked[first:last],
        sampling,
        group_size=group_size,
        uniform=None if uniform is None else uniform[first * group_size : last * group_size],
    )
    found = concat(session.world.gather(rollout)).piece(0, len(items))
    session.progress.generated_tokens += int(found.mask.sum())
    return found.padded(session.config.length_bucket)


def rewarded(session: Session, items: list[Item], rollout: Rollout) -> Experience:
    """Returns answers with their rewards, as the reward functions give them."""
    completions = texts(session.policy, rollout)
    repeated = [item for item in items for _ in range(rollout.group_size)]
    scored = score_completions(session.rewards, repeated, completions)
    reward = scored.reward.to(rollout.token.device)
    return Experience(rollout, repeated, completions, scored, reward)


def one_round(session: Session) -> Experience:
    """Returns the answers to the next prompts of the task."""
    config, progress = session.config, session.progress
    items, progress.position = session.task.next_items(progress.position, config.prompts)
    rollout = generate(session, session.policy, items, session.sampling, config.group_size)
    found = rewarded(session, items, rollout)
    mixed = rlkern.sampling.mixed_groups(found.reward, found.group)[:: config.group_size]
    progress.sampled_groups += len(mixed)
    progress.useful_groups += int(mixed.sum())
    return found


def every_group(session: Session, warn: Warn) -> Experience:
    """Returns one round of sampling, whatever its rewards."""
    return one_round(session)


def mixed_groups(session: Session, warn: Warn) -> Experience:
    """Returns a batch full of groups whose rewards differ: DAPO's dynamic sampling.

    Round after round, each of as many prompts as the batch has; groups beyond the batch are
    dropped. After sampling_rounds the step takes what there is, and says so.
    """
    config, parts, count = session.config, list[Experience](), 0
    for _ in range(config.sampling_rounds):
        found = one_round(session)
        mixed = rlkern.sampling.mixed_groups(found.reward, found.group)[:: config.group_size]
        parts.append(take(found, mixed.nonzero().flatten()[: config.prompts - count]))
        count += int(mixed.sum())
        if count >= config.prompts:
            break
    if not count:
        return found
    if count < config.prompts:
        _note_short(session, count, warn)
    return joined([part for part in parts if part.items])


def _note_short(session: Session, count: int, warn: Warn) -> None:
    """Count a batch that could not be filled, and say so, the first time and every fiftieth."""
    config, progress = session.config, session.progress
    progress.short_steps += 1
    if progress.short_steps == 1 or progress.short_steps % 50 == 0:
        warn(
            f"step {progress.step + 1}: only {count} of {config.prompts} groups had rewards that"
            f" differ after {config.sampling_rounds} rounds of sampling (sampling_rounds); the step"
            f" is made of these ({progress.short_steps} such steps so far)"
        )


def take(experience: Experience, prompts: Tensor) -> Experience:
    """Returns the answers to some prompts, by index; nothing may have been scored yet."""
    rows = experience.rollout.rows_of(prompts)
    index = rows.tolist()
    scored = experience.scored
    return Experience(
        experience.rollout.take(prompts),
        [experience.items[i] for i in index],
        [experience.completions[i] for i in index],
        Scored(scored.reward[rows.cpu()], scored.by_function[:, rows.cpu()]),
        experience.reward[rows],
    )


def joined(parts: list[Experience]) -> Experience:
    """Returns rounds of sampling as one; nothing may have been scored yet."""
    return Experience(
        concat([part.rollout for part in parts]),
        [item for part in parts for item in part.items],
        [text for part in parts for text in part.completions],
        Scored(
            torch.cat([part.scored.reward for part in parts]),
            torch.cat([part.scored.by_function for part in parts], 1),
        ),
        torch.cat([part.reward for part in parts]),
    )


# By what a declaration or the settings say of sampling; copies are made after the advantages.
SAMPLING: dict[str, Callable[[Session, Warn], Experience]] = {
    "all": every_group,
    "dynamic": mixed_groups,
    "duplicate": every_group,
}


def with_baselines(session: Session, experience: Experience) -> Experience:
    """Returns the answers with what the algorithm compares their rewards with: a greedy answer to
    each prompt, or V* from answers of the reference."""
    config, needs = session.config, session.algorithm.needs
    G = experience.rollout.group_size
    items = experience.items[::G]
    if "greedy" in needs:
        rollout = generate(session, session.policy, items, session.sampling.greedy(), 1)
        reward = rewarded(session, items, rollout).reward
        experience = dataclasses.replace(experience, greedy_reward=reward.repeat_interleave(G))
    if "reference_samples" in needs and session.reference is not None:
        n = config.reference_samples
        rollout = generate(session, session.reference, items, session.sampling, n)
        reward = rewarded(session, items, rollout).reward.view(-1, n)
        value = rlkern.advantage.optimal_value(reward, temperature=config.optimal_temperature)
        experience = dataclasses.replace(experience, optimal_value=value.repeat_interleave(G))
    return experience
