# SPDX-License-Identifier: Apache-2.0
"""From prompts to rewarded answers, and which groups of them a step is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

import rlkern
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.parts import Parts
from rlkern.trainer.reward.functions import score_completions
from rlkern.trainer.rollout.sampler import ModelEngine, Sampling, random_numbers
from rlkern.trainer.rollout.talks import answer_columns
from rlkern.trainer.rollout.text import texts
from rlkern.trainer.rollout.turns import converse
from rlkern.trainer.rows import Rows, joined
from rlkern.trainer.settings.learning import DynamicGroups
from rlkern.trainer.tasks.task import Item

Warn = Callable[[str], None]


def generate(
    parts: Parts, policy: Policy, items: list[Item], sampling: Sampling, group_size: int
) -> Rows:
    """Returns group_size answers of a policy to each item, sampled by all processes together."""
    world, uniform = parts.world, None
    if sampling.temperature > 0:
        uniform = random_numbers(parts.generator, len(items) * group_size, sampling)
    asked = items
    if short := max(0, world.size - len(items)):
        # Every process needs something to sample; what is too much is left out below.
        asked = items + items[-1:] * short
        if uniform is not None:
            uniform = torch.cat([uniform, uniform[-group_size:].repeat(short, 1)])
    first, last = world.share(len(asked))
    engine = parts.engine if policy is parts.policy else ModelEngine(policy)
    engine.refresh()
    own = converse(
        engine,
        parts.task,
        asked[first:last],
        sampling,
        group_size=group_size,
        uniform=None if uniform is None else uniform[first * group_size : last * group_size],
    )
    found = joined(world.gather(own)).piece(0, len(items))
    parts.progress.generated_tokens += int(found.mask.sum())
    return found.padded(parts.settings.memory.length_bucket)


def rewarded(parts: Parts, items: list[Item], rows: Rows) -> Rows:
    """Returns the rows with their rewards, as the reward functions give them. They are asked once
    about each answer, by the main process."""
    text = texts(parts.policy, rows)
    repeated = [item for item in items for _ in range(rows.group_size)]

    def ask() -> tuple[Tensor, Tensor, int]:
        before = parts.rewards.late
        columns, transcript = answer_columns(rows), rows.transcript
        found = score_completions(parts.rewards, repeated, text, columns, transcript)
        return *found, parts.rewards.late - before

    with parts.rewards.watched():
        reward, rewards, late = parts.world.in_main(ask)
    reward, rewards = reward.to(rows.token.device), rewards.to(rows.token.device)
    parts.progress.late_answers += late
    return dataclasses.replace(rows, item=repeated, text=text, reward=reward, rewards=rewards)


def one_round(parts: Parts) -> tuple[Rows, Tensor]:
    """Returns the answers to the next prompts of the task, and which prompts (Q,) have answers
    whose rewards differ."""
    settings, progress = parts.settings, parts.progress
    G = settings.rollout.group_size
    items, progress.position = parts.task.next_items(progress.position, settings.batch.prompts)
    rows = rewarded(parts, items, generate(parts, parts.policy, items, parts.sampling, G))
    assert rows.reward is not None
    mixed = rlkern.sampling.mixed_groups(rows.reward, rows.group)[::G]
    progress.count_groups(len(mixed), int(mixed.sum()))
    return rows, mixed


def collect(parts: Parts, warn: Warn) -> Rows:
    """Returns the answers of a step; copies of groups are made after the advantages."""
    groups = parts.settings.groups
    if isinstance(groups, DynamicGroups):
        return _mixed_groups(parts, groups.rounds, warn)
    return one_round(parts)[0]


def _mixed_groups(parts: Parts, rounds: int, warn: Warn) -> Rows:
    """Returns a batch full of groups whose rewards differ: DAPO's dynamic sampling.

    Round after round, each of as many prompts as the batch has; groups beyond the batch are
    dropped. After the last round the step takes the groups that there are, and says so.
    """
    prompts, found, count = parts.settings.batch.prompts, list[Rows](), 0
    for _ in range(rounds):
        rows, mixed = one_round(parts)
        found.append(rows.take(mixed.nonzero().flatten()[: prompts - count]))
        count += int(mixed.sum())
        if count >= prompts:
            break
    if not count:
        return rows
    if count < prompts:
        _note_short(parts, count, rounds, warn)
    return joined([each for each in found if each.prompts])


def _note_short(parts: Parts, count: int, rounds: int, warn: Warn) -> None:
    """Counts a batch that could not be filled, and says so, the first time and every fiftieth."""
    progress = parts.progress
    progress.short_steps += 1
    if progress.short_steps == 1 or progress.short_steps % 50 == 0:
        warn(
            f"step {progress.step + 1}: only {count} of {parts.settings.batch.prompts} groups had"
            f" rewards that differ after {rounds} rounds of sampling (groups.rounds); the step is"
            f" made of these ({progress.short_steps} such steps so far)"
        )


def with_baseline(parts: Parts, rows: Rows) -> Rows:
    """Returns the rows with the reward that the algorithm compares theirs with, if it does: that of
    a greedy answer to each prompt, or V* from answers of the reference."""
    needs, G = parts.settings.declared.needs, rows.group_size
    assert rows.item is not None
    items = rows.item[::G]
    if "greedy" in needs:
        greedy = generate(parts, parts.policy, items, parts.sampling.greedy(), 1)
        reward = rewarded(parts, items, greedy).reward
    elif "reference_samples" in needs and parts.reference is not None:
        asked = parts.settings.advantage
        n = asked.reference_samples
        sampled = generate(parts, parts.reference, items, parts.sampling, n)
        reward = rewarded(parts, items, sampled).reward
        assert reward is not None
        reward = rlkern.advantage.optimal_value(
            reward.view(-1, n), temperature=asked.optimal_temperature
        )
    else:
        return rows
    assert reward is not None
    return dataclasses.replace(rows, baseline=reward.repeat_interleave(G))
