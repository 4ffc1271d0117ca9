# SPDX-License-Identifier: Apache-2.0
"""One step of learning from own answers: rollout, rewards, scores, advantages, updates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.algorithms import Algorithm
from rlkern.trainer.collect import Warn, collect, with_baseline
from rlkern.trainer.evaluate import task_accuracies
from rlkern.trainer.losses import Losses, Objective, PolicyLosses
from rlkern.trainer.models.policy import Policy, token_logprob, without_gradient
from rlkern.trainer.online import shaping
from rlkern.trainer.online.advantages import Rewarded, with_advantage
from rlkern.trainer.online.statistic import with_statistic
from rlkern.trainer.parts import Parts
from rlkern.trainer.reward.functions import reward_statistics
from rlkern.trainer.rollout.talks import conversation_statistics
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings.learning import DuplicateGroups
from rlkern.trainer.show.report import (
    StepAnswers,
    Stopwatch,
    completion_statistics,
    note,
    note_cut_off,
    note_unscored,
    pick_samples,
    update_values,
)
from rlkern.trainer.update import StepResult, Updater, rates


class Online:
    """Learns from answers that the policy samples, by rlkern.policy_loss."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._controller = shaping.make_controller(parts.settings, parts.progress.reward_kl_coef)

    def losses(self) -> Losses:
        """Returns the losses of the policy and, if there is one, its critic."""
        parts, settings = self.parts, self.parts.settings
        return PolicyLosses(parts.policy, settings, Objective.of(settings), parts.critic)

    def evaluate(self) -> dict[str, float]:
        """Returns the accuracies on held-out items."""
        return task_accuracies(self.parts)

    def step(self, updater: Updater, warn: Warn) -> tuple[dict[str, float], StepAnswers]:
        """Returns the metrics and the answers of the next step; the run moves one step on."""
        parts, progress = self.parts, self.parts.progress
        watch, asked = Stopwatch(parts.policy.device), parts.rewards.seconds
        with updater.gathered():
            rows = with_baseline(parts, collect(parts, warn))
            watch.lap("rollout")
            watch.move("rollout", "reward", parts.rewards.seconds - asked)
            rows = shaping.shaped(self._scored(rows), parts.settings, parts.sampling.longest)
        given = Rewarded(rows, self._controller.coef, parts.settings)
        rows = self._trained(with_advantage(given))
        note_unscored(parts, rows, warn)
        watch.lap("score")
        results = list(self._updates(rows, updater))
        progress.count_step(rows.tokens)
        statistics = reward_statistics(rows, parts.rewards)
        assert rows.advantage is not None
        equal = not progress.unscored_rollouts and not rows.advantage.any().item()
        note(parts, results, equal, statistics["reward"], warn)
        values = {
            **statistics,
            **conversation_statistics(given.rows),
            **update_values(parts, results),
            **(lengths := completion_statistics(given.rows, parts.sampling.stop)),
            **self._sampling_values(given.rows),
            "sampling/groups_silent": sum(result.silent for result in results),
            **shaping.mismatch_metrics(given.rows, rows.correction),
            **shaping.objective_metrics(given),
        }
        note_cut_off(parts, lengths["completions/clipped_ratio"], warn)
        self._steer(given)
        watch.seconds["time/loss"] = sum(result.loss_seconds for result in results)
        watch.seconds["time/step"] = sum(result.step_seconds for result in results)
        values.update(watch.seconds, step_time=sum(watch.seconds.values()))
        samples = pick_samples(rows, parts.settings)
        return values, StepAnswers(samples, dataclasses.replace(rows, mask=given.rows.mask))

    def _scored(self, rows: Rows) -> Rows:
        """Returns the rows with the scores that something reads, and with no others."""
        parts, settings = self.parts, self.parts.settings
        reads_old = settings.updates > 1 or settings.reward.kl_coef or settings.correction
        reads_old = reads_old or parts.teacher is not None
        by_share = partial(
            without_gradient, rows=rows, world=parts.world, parts=settings.batch.micro_batches
        )

        def logprob(policy: Policy) -> Callable[[Rows], Tensor]:
            return lambda part: token_logprob(policy, part, settings)

        found: dict[str, Any] = {}
        if reads_old:
            found["old_logprob"] = by_share(logprob(parts.policy))
        if parts.reference is not None:
            found["ref_logprob"] = by_share(logprob(parts.reference))
        if parts.teacher is not None:
            found["teacher_logprob"] = by_share(logprob(parts.teacher))
        if (critic := parts.critic) is not None:
            found["value"] = by_share(lambda part: critic.values(parts.policy, part))
        return dataclasses.replace(rows, **found)

    def _trained(self, rows: Rows) -> Rows:
        """Returns the rows as the losses read them: which tokens count, what the ratio is to, and
        the correction of the sampler's mismatch."""
        settings = self.parts.settings
        anchor = rows.old_logprob
        if settings.declared.anchor == "reference":
            anchor = rows.ref_logprob
        elif settings.updates == 1:
            anchor = None  # the policy that sampled is the one that is trained: the ratio is 1
        mask = shaping.trained_mask(rows, self.parts.sampling.stop, settings)
        rows = dataclasses.replace(rows, mask=mask, anchor_logprob=anchor)
        return dataclasses.replace(rows, correction=shaping.correction(settings, rows))

    def _updates(self, rows: Rows, updater: Updater) -> Iterator[StepResult]:
        """Yields what each optimizer step on a rollout did."""
        parts, batch = self.parts, self.parts.settings.batch
        rows, copies = self._refilled(rows)
        prompts, device = rows.prompts, rows.token.device
        if not prompts:
            return
        for chosen in minibatches(prompts, batch.epochs, batch.minibatches, parts.generator):
            part, counted = rows, copies
            if len(chosen) < prompts:
                part = rows.take(chosen.to(device))
                counted = None if copies is None else copies.view(prompts, -1)[chosen].flatten()
            if parts.settings.declared.statistic:
                with updater.gathered():
                    part = with_statistic(parts, part)
            yield self._update(self._weighted(part, counted), updater)

    def _weighted(self, rows: Rows, copies: Tensor | None) -> Rows:
        """Returns the rows with the weights of their own counts; copies (B,) counts each answer."""
        settings, constant = self.parts.settings, None
        declared = settings.declared
        assert isinstance(declared, Algorithm)  # what learns from rollouts is one
        mode = declared.aggregation
        if mode == "sequence_token_sum":
            constant = self.parts.sampling.longest

        def weights(mask: Tensor, mode: str, constant: float | None = None) -> Tensor:
            if copies is None:
                return rlkern.aggregate.token_weight(mask, mode, constant=constant)
            return rlkern.sampling.multiplicity_weight(mask, copies, mode, constant=constant)

        found: dict[str, Any] = {"weight": weights(rows.mask, mode, constant)}
        if settings.loss.entropy_over == "tokens":
            found["entropy_weight"] = weights(rows.mask, "token_mean")
        if settings.loss.nll_coef:
            of_right = weights(shaping.right_mask(rows), "token_mean")
            found["nll_weight"] = settings.loss.nll_coef * of_right
        if rows.value_target is not None:
            found["value_weight"] = rlkern.aggregate.token_weight(rows.mask, "token_mean")
        return dataclasses.replace(rows, **found)

    def _refilled(self, rows: Rows) -> tuple[Rows, Tensor | None]:
        """Returns the rows after DUPO's refill by copies, or the count of each answer by weight."""
        groups, generator = self.parts.settings.groups, self.parts.generator
        if not isinstance(groups, DuplicateGroups):
            return rows, None
        # The rewards as the functions gave them: a punishment of length would make groups whose
        # answers are equally right look mixed.
        assert rows.reward is not None
        if groups.by == "weight":
            return rows, rlkern.sampling.refill_multiplicity(
                rows.reward, rows.group, generator=generator
            )
        index = rlkern.sampling.refill_index(rows.reward, rows.group, generator=generator)
        return rows.take(index[:: rows.group_size] // rows.group_size), None

    def _update(self, rows: Rows, updater: Updater) -> StepResult:
        settings, progress = self.parts.settings, self.parts.progress
        waits = self.parts.critic is not None and progress.step < settings.critic.warmup
        result = updater.step(rows, rates(settings, progress.update), train_policy=not waits)
        progress.count_update(result.skipped)
        return result

    def _steer(self, given: Rewarded) -> None:
        """Moves the weight of the KL in the reward, if it is adaptive."""
        if given.kl_coef:
            kl = shaping.mean_kl(given)
            if math.isfinite(kl):
                self._controller.update(kl, len(given.reward))
            self.parts.progress.reward_kl_coef = self._controller.coef

    def _sampling_values(self, rows: Rows) -> dict[str, float]:
        """Returns what sampling cost so far."""
        progress, timed = self.parts.progress, self.parts.rewards.timed
        return {
            "sampling/generated_tokens": progress.generated_tokens,
            "sampling/groups_sampled": progress.sampled_groups,
            "sampling/useful_groups": progress.useful_groups,
            "sampling/groups_trained": rows.prompts,
            **({"rewards/late": progress.late_answers} if timed else {}),
        }


def minibatches(
    prompts: int, epochs: int, count: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yields the prompts of each optimizer step: all of them in each epoch, in a new order if they
    are split.

    >>> steps = list(minibatches(4, 1, 2, torch.Generator().manual_seed(0)))
    >>> sorted(torch.cat(steps).tolist()), [len(x) for x in steps]
    ([0, 1, 2, 3], [2, 2])
    """
    for _ in range(epochs):
        if count == 1:
            yield torch.arange(prompts)
            continue
        order = torch.randperm(prompts, generator=generator)
        edges = [prompts * i // count for i in range(count + 1)]
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            if first < last:
                yield order[first:last].sort().values
