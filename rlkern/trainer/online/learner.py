# SPDX-License-Identifier: Apache-2.0
"""One step of learning from own answers: rollout, rewards, scores, advantages, updates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import rlkern
from rlkern.trainer.batch import Batch, minibatches, weighted
from rlkern.trainer.evaluate import task_accuracies
from rlkern.trainer.online import shaping
from rlkern.trainer.online.advantages import Estimate, estimate
from rlkern.trainer.online.experience import Experience
from rlkern.trainer.reward import reward_statistics
from rlkern.trainer.rollout.collect import SAMPLING, Warn, with_baselines
from rlkern.trainer.rollout.mismatch import correction, mismatch_metrics
from rlkern.trainer.scoring import score
from rlkern.trainer.session import Session, attach_reference
from rlkern.trainer.show.display import Display
from rlkern.trainer.show.report import (
    Sample,
    Stopwatch,
    completion_statistics,
    note,
    pick_samples,
    update_values,
)
from rlkern.trainer.step import Losses, StepResult, optimizer_step, pieces


class Online:
    """Learns from answers that the policy samples: whatever rlkern.policy_loss is the loss of."""

    def __init__(self, session: Session):
        self.session = session
        self.controller = shaping.make_controller(session.config)
        self.controller.load_state_dict({"coef": session.progress.reward_kl_coef})

    def prepare(self, run: Path, display: Display) -> None:
        """Freeze the reference, and put the models under one roof."""
        session = self.session
        attach_reference(session, run)
        if session.critic is not None and session.progress.step == 0:
            session.critic.begin(session.policy)
        self.losses: torch.nn.Module = Losses(session.policy, session.critic, session.config)

    def evaluate(self) -> dict[str, float]:
        """Returns the accuracies on held-out items."""
        return task_accuracies(self.session)

    def iterate(self, warn: Warn) -> tuple[dict[str, float], list[Sample]]:
        """Returns the metrics and some samples of the next step; the session moves one step on."""
        session, progress = self.session, self.session.progress
        watch = Stopwatch(session.policy.device)
        with session.gathered():
            experience = SAMPLING[session.config.sampling or "all"](session, warn)
            experience = with_baselines(session, experience)
            watch.lap("rollout")
            experience = self._shaped(self._scored(experience))
        found = estimate(experience, session.algorithm, session.config)
        watch.lap("score")
        results = list(self._updates(self._batch(experience, found), experience))
        progress.step += 1
        rollout = experience.rollout
        progress.num_tokens += int(
            rollout.prompts.mask.sum() * rollout.group_size + rollout.present.sum()
        )
        statistics = reward_statistics(experience.scored, session.rewards, rollout.group_size)
        note(session, results, not found.advantage.any().item(), statistics["reward"], warn)
        values = {
            **statistics,
            **update_values(session, results),
            **completion_statistics(rollout, session.sampling.stop),
            **self._sampling_values(experience),
            **shaping.objective_metrics(experience),
        }
        self._steer(experience)
        watch.seconds["time/loss"] = sum(result.loss_seconds for result in results)
        watch.seconds["time/step"] = sum(result.step_seconds for result in results)
        values.update(watch.seconds, step_time=sum(watch.seconds.values()))
        samples = pick_samples(experience, rollout.group_size)
        return values, samples

    def _scored(self, experience: Experience) -> Experience:
        """Returns the experience with the scores that something reads, and with no others."""
        session, config = self.session, self.session.config
        reads_old = (
            session.updates > 1 or session.kl_in_reward or config.rollout_correction != "none"
        )
        old = self._score(session.policy, experience) if reads_old else None
        ref = None
        if session.reference is not None:
            ref = self._score(session.reference, experience)
        value = None
        if session.critic is not None:
            first, last = session.world.share(experience.rollout.prompts.token.shape[0])
            own = experience.rollout.piece(first, last)
            split = pieces(last - first, config.micro_batches)
            value = session.world.gather_rows(session.critic.values(session.policy, own, split))
        coef = self.controller.coef if session.kl_in_reward else 0.0
        return dataclasses.replace(
            experience, old_logprob=old, ref_logprob=ref, value=value, reward_kl_coef=coef
        )

    def _score(self, policy, experience: Experience) -> Tensor:
        session, config = self.session, self.session.config
        first, last = session.world.share(experience.rollout.prompts.token.shape[0])
        own = score(
            policy,
            experience.rollout.piece(first, last),
            temperature=config.temperature,
            share_prompts=config.share_prompts,
            pieces=pieces(last - first, config.micro_batches),
        )
        return session.world.gather_rows(own)

    def _shaped(self, experience: Experience) -> Experience:
        """Returns the experience with what the algorithm or the settings add to the reward."""
        session, longest = self.session, self.session.sampling.longest
        cache = shaping.overlong_cache(session.config, session.algorithm, longest)
        reward = shaping.shaped_reward(
            experience.reward, experience.rollout, cache=cache, longest=longest
        )
        return dataclasses.replace(experience, reward=reward)

    def _batch(self, experience: Experience, found: Estimate) -> Batch:
        session, config = self.session, self.session.config
        mask = shaping.trained_mask(experience.rollout, session.sampling.stop, config)
        rollout = dataclasses.replace(experience.rollout, mask=mask)
        anchor = experience.old_logprob
        if session.algorithm.anchor == "reference":
            anchor = experience.ref_logprob
        elif session.updates == 1:
            anchor = None  # the policy that sampled is the one that is trained: the ratio is 1
        return Batch(
            rollout=rollout,
            advantage=found.advantage,
            weight=torch.zeros_like(rollout.rollout_logprob),
            old_logprob=anchor,
            ref_logprob=experience.ref_logprob if session.kl_coef else None,
            correction=correction(config, experience.old_logprob, rollout),
            old_value=experience.value,
            value_target=found.value_target,
        )

    def _updates(self, batch: Batch, experience: Experience) -> Iterator[StepResult]:
        """Yields what each optimizer step on a rollout did."""
        session, config = self.session, self.session.config
        batch, copies = self._refilled(batch, experience)
        device = batch.advantage.device
        prompts = batch.rollout.prompts.token.shape[0]
        constant = None
        if session.algorithm.aggregation == "sequence_token_sum":
            constant = session.sampling.longest
        steps = (config.epochs or 1, config.minibatches or 1)
        if not prompts:
            return
        for chosen in minibatches(prompts, *steps, session.generator):
            part, counted = batch, copies
            if len(chosen) < prompts:
                part = batch.take(chosen.to(device))
                counted = None if copies is None else copies.view(prompts, -1)[chosen].flatten()
            part = weighted(part, counted, session.algorithm.aggregation, constant)
            yield self._update(part)

    def _refilled(self, batch: Batch, experience: Experience) -> tuple[Batch, Tensor | None]:
        """Returns the batch after DUPO's refill by rows, or the copies of each answer by weight."""
        session = self.session
        if session.config.sampling != "duplicate":
            return batch, None
        # The rewards as the functions gave them: a punishment of length would make groups whose
        # answers are equally right look mixed.
        reward, group = experience.scored.reward.to(experience.reward), experience.group
        generator = session.generator
        if session.config.duplicate_by == "weight":
            multiplicity = rlkern.sampling.refill_multiplicity(reward, group, generator=generator)
            return batch, multiplicity
        index = rlkern.sampling.refill_index(reward, group, generator=generator)
        return batch.take(index[:: batch.rollout.group_size] // batch.rollout.group_size), None

    def _update(self, batch: Batch) -> StepResult:
        session, progress = self.session, self.session.progress
        result = optimizer_step(
            self.losses,
            session.optimizer,
            batch,
            session.config,
            session.coefficients,
            rates=session.rates(progress.update),
            world=session.world,
            train_policy=progress.step >= session.config.critic_warmup or session.critic is None,
        )
        progress.update += 1
        progress.skipped_updates += result.skipped
        return result

    def _steer(self, experience: Experience) -> None:
        """Move the weight of the KL in the reward, where it is adaptive."""
        if self.session.kl_in_reward:
            kl = shaping.mean_kl(experience)
            if math.isfinite(kl):
                self.controller.update(kl, len(experience.reward))
            self.session.progress.reward_kl_coef = self.controller.coef

    def _sampling_values(self, experience: Experience) -> dict[str, float]:
        """Returns what sampling cost so far, and how far the sampler is from the trainer."""
        progress = self.session.progress
        return {
            "sampling/generated_tokens": progress.generated_tokens,
            "sampling/groups_sampled": progress.sampled_groups,
            "sampling/useful_groups": progress.useful_groups,
            "sampling/groups_trained": len(experience.items) // experience.rollout.group_size,
            **mismatch_metrics(self.session.config, experience.old_logprob, experience.rollout),
        }
