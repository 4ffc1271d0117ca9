# SPDX-License-Identifier: Apache-2.0
"""Learners of preferences: of pairs, of answers judged alone, and of reward models."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.backends.eager.preference_loss import PREFERENCE_KINDS
from rlkern.trainer.errors import UserError
from rlkern.trainer.evaluate import task_accuracies
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.offline.check import is_preference, needs_reference
from rlkern.trainer.offline.given import given_rollout
from rlkern.trainer.offline.losses import (
    Given,
    JudgedLosses,
    PairLosses,
    ScoreLosses,
    answer_logprob,
    halves,
)
from rlkern.trainer.offline.pairs import (
    SAMPLED,
    Pair,
    given_pairs,
    kept_pairs,
    sampled_pairs,
    write,
)
from rlkern.trainer.offline.reward_model import is_scorer, make_scorer, scores
from rlkern.trainer.offline.supervised import take_step, with_times
from rlkern.trainer.rollout.collect import Warn
from rlkern.trainer.rollout.data import Rollout
from rlkern.trainer.session import Session, attach_reference
from rlkern.trainer.show.display import Display
from rlkern.trainer.show.report import Sample, Stopwatch, note, update_values
from rlkern.trainer.step import make_optimizer, pieces
from rlkern.trainer.tasks.task import epochs

Judgement = tuple[str, str, bool]  # prompt, answer, desirable


class Preferences(ABC):
    """What learners of preferences share: their pairs, the order of these, the step, and the
    held-out accuracy of a policy's implicit reward."""

    losses: torch.nn.Module

    def __init__(self, session: Session):
        self.session = session
        self.coefficients = {**session.algorithm.defaults, **session.coefficients}
        self._given = given_pairs(session.config)
        if self._given is not None:
            # Text that the model cannot read is refused before the run begins.
            for pair in (*self._given.train, *self._given.held_out):
                self.rollout([pair])

    def prepare(self, run: Path, display: Display) -> None:
        """Find the pairs of the run, or make them and keep them; then make the models."""
        session, pairs = self.session, kept_pairs(run)
        if pairs is None:
            pairs = self._given
            if pairs is None:
                display.say("sampling pairs of answers from the starting model")
                pairs = sampled_pairs(session)
            if session.world.is_main:
                write(pairs, run)
            session.world.barrier()
        display.say(f"{len(pairs.train)} pairs to learn from, {len(pairs.held_out)} held out")
        self.pairs = pairs
        self.make_models(run)

    @abstractmethod
    def make_models(self, run: Path) -> None:
        """Freeze the reference, if the loss has one, and put the model under one roof with its
        loss."""

    @abstractmethod
    def batch(self) -> tuple[Given, list[Sample]]:
        """Returns the next batch, and some of it as text."""

    def iterate(self, warn: Warn) -> tuple[dict[str, float], list[Sample]]:
        """Returns the metrics and some answers of the next step; the session moves one step on."""
        session = self.session
        watch = Stopwatch(session.policy.device)
        with session.gathered():
            batch, samples = self.batch()
        watch.lap("score")
        result = take_step(session, self.losses, batch, session.config, self.coefficients)
        note(session, [result], False, 0.0, warn)
        found = rlkern.preference_metrics_dict(torch.stack(result.metrics).sum(0))
        found.pop("count")
        # A reward model has no log-probabilities.
        known = {key: value for key, value in found.items() if value == value}
        rest = update_values(session, [dataclasses.replace(result, metrics=[])])
        return with_times({**known, **rest}, watch, result), samples

    def rollout(self, pairs: list[Pair]) -> Rollout:
        """Returns pairs as tokens, each prompt with its chosen and its rejected answer."""
        session = self.session
        # Where the task ends an answer by a text, a sampled one holds it already.
        stop = session.task.stop if session.config.pairs == SAMPLED else ""
        answers = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
        return given_rollout(session.policy, [p.prompt for p in pairs], answers, stop=stop)

    def next_of(self, rows: list[Any]) -> list[Any]:
        """Returns the next batch of rows, which come in a new order in each epoch; the session
        moves on."""
        progress, count = self.session.progress, self.session.config.prompts
        order, first = epochs(rows, self.session.config.seed), progress.position
        progress.position += count
        return [order(place) for place in range(first, first + count)]

    def without_gradient(self, rollout: Rollout, function: Callable[[Rollout], Tensor]) -> Tensor:
        """Returns function(answers) (B,), each process doing its share, a piece at a time."""
        world, found = self.session.world, [rollout.rollout_logprob.new_zeros(0)]
        first, last = world.share(rollout.prompts.token.shape[0])
        with torch.no_grad():
            for begin, end in pieces(last - first, self.session.config.micro_batches):
                found.append(function(rollout.piece(first + begin, first + end)))
        return world.gather_rows(torch.cat(found))

    def logprob(self, policy: Policy, rollout: Rollout) -> Tensor:
        """Returns the log-probability (B,) of each answer, without gradient."""
        config = self.session.config
        return self.without_gradient(rollout, lambda part: answer_logprob(policy, part, config))

    def held_out(self) -> list[Rollout]:
        """Returns the held-out pairs as tokens, some at a time."""
        at_once, held = max(1, self.session.config.eval_batch // 2), self.pairs.held_out
        parts = [held[first : first + at_once] for first in range(0, len(held), at_once)]
        return [self.rollout(part) for part in parts]

    def evaluate(self) -> dict[str, float]:
        """Returns the share of held-out pairs whose chosen answer has the higher implicit reward,
        by sums and by means over tokens, and the accuracies on the task where the pairs are of
        it."""
        session, margins, means = self.session, list[Tensor](), list[Tensor]()
        for rollout in self.held_out():
            reward = self.logprob(session.policy, rollout)
            if session.reference is not None:
                reward = reward - self.logprob(session.reference, rollout)
            length = rollout.mask.sum(-1)
            margins.append(torch.sub(*halves(reward)))
            means.append(torch.sub(*halves(reward / length)))
        found = {
            "eval/pair_accuracy": share_right(torch.cat(margins)),
            "eval/pair_accuracy_normalized": share_right(torch.cat(means)),
            "eval/pair_margin": torch.cat(margins).mean().item(),
        }
        kind = PREFERENCE_KINDS.get(str(session.config.kind))
        averages = is_preference(session.algorithm) and kind is not None and kind.average
        compared = "eval/pair_accuracy" + ("_normalized" if averages else "")
        task = task_accuracies(session) if session.config.pairs == SAMPLED else {}
        return {**task, "eval/accuracy": found[compared], **found}


def share_right(margin: Tensor) -> float:
    """Returns the share of margins (n,) above 0; one of exactly 0 is a coin's toss.

    >>> share_right(torch.tensor([1.0, 0.0, -1.0, 2.0]))
    0.625
    """
    return ((margin.sign() + 1) / 2).mean().item()


def even_weight(count: int, device: torch.device) -> Tensor:
    """Returns the weight (count,) of each row in a mean over the batch."""
    return rlkern.aggregate.token_weight(torch.ones(1, count, dtype=torch.bool, device=device))[0]


def shown(pairs: list[Pair]) -> list[Sample]:
    """Returns both answers of the first pairs, the chosen one with reward 1."""
    return [
        (pair.prompt, text, reward)
        for pair in pairs[:4]
        for text, reward in ((pair.chosen, 1.0), (pair.rejected, 0.0))
    ]


class FromPairs(Preferences):
    """Learns a policy from pairs by rlkern.preference_loss, of any kind."""

    def __init__(self, session: Session):
        super().__init__(session)
        if session.world.size > 1 and PREFERENCE_KINDS[str(session.config.kind)].sorted_by:
            raise UserError(
                f"kind {session.config.kind!r} sorts the whole batch, which one process must hold:"
                f" start one, got {session.world.size}"
            )

    def make_models(self, run: Path) -> None:
        session = self.session
        if needs_reference(session.config, session.algorithm):
            attach_reference(session, run)
        self.losses = PairLosses(session.policy, session.config)

    def batch(self) -> tuple[Given, list[Sample]]:
        session, pairs = self.session, self.next_of(self.pairs.train)
        rollout, reference = self.rollout(pairs), session.reference
        ref = None if reference is None else self.logprob(reference, rollout)
        weight = even_weight(len(pairs), session.policy.device)
        return Given(rollout, weight, ref_logprob=ref), shown(pairs)


class Judged(Preferences):
    """Learns a policy from answers that are each desirable or not: the two of every pair, apart."""

    def make_models(self, run: Path) -> None:
        attach_reference(self.session, run)
        self.losses = JudgedLosses(self.session.policy, self.session.config)

    def batch(self) -> tuple[Given, list[Sample]]:
        session, reference = self.session, self.session.reference
        assert reference is not None
        judged: list[Judgement] = [
            (pair.prompt, text, desirable)
            for pair in self.pairs.train
            for text, desirable in ((pair.chosen, True), (pair.rejected, False))
        ]
        prompts, answers, desirable = (list(x) for x in zip(*self.next_of(judged), strict=True))
        stop = session.task.stop if session.config.pairs == SAMPLED else ""
        rollout = given_rollout(session.policy, prompts, answers, stop=stop)
        others = mismatched(rollout)
        kl = rlkern.mismatched_kl(
            self.logprob(session.policy, others), self.logprob(reference, others)
        )
        given = Given(
            rollout,
            even_weight(len(prompts), session.policy.device),
            ref_logprob=self.logprob(reference, rollout),
            desirable=torch.tensor(desirable, device=session.policy.device),
            kl=kl,
        )
        rows = zip(prompts, answers, desirable, strict=True)
        return given, [(prompt, text, float(good)) for prompt, text, good in list(rows)[:8]]


def mismatched(rollout: Rollout) -> Rollout:
    """Returns each prompt with the answer to the next one, the last with the answer to the
    first."""
    rows = {"token", "mask", "rollout_logprob", "present"}
    return dataclasses.replace(rollout, **{k: getattr(rollout, k).roll(-1, 0) for k in rows})


class Scored(Preferences):
    """Learns a reward model from pairs; its trunk is that of the starting model."""

    def rollout(self, pairs: list[Pair]) -> Rollout:
        """Returns pairs as tokens; every answer ends as those do that the model will be asked
        about."""
        answers = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
        return given_rollout(self.session.policy, [p.prompt for p in pairs], answers, stop="")

    def make_models(self, run: Path) -> None:
        session = self.session
        if not is_scorer(session.policy):
            session.policy = make_scorer(session.policy)
            session.optimizer = make_optimizer(session.policy, None, session.config)
        self.losses = ScoreLosses(session.policy, session.config)

    def batch(self) -> tuple[Given, list[Sample]]:
        pairs = self.next_of(self.pairs.train)
        weight = even_weight(len(pairs), self.session.policy.device)
        return Given(self.rollout(pairs), weight), shown(pairs)

    def evaluate(self) -> dict[str, float]:
        """Returns the share of held-out pairs whose chosen answer has the higher score, and the
        scores' mean and spread."""
        policy = self.session.policy
        parts = [
            self.without_gradient(rollout, lambda part: scores(policy, part))
            for rollout in self.held_out()
        ]
        score = torch.cat(parts)
        margin = torch.sub(*halves(score))
        return {
            "eval/accuracy": share_right(margin),
            "eval/pair_accuracy": share_right(margin),
            "eval/pair_margin": margin.mean().item(),
            "eval/score_mean": score.mean().item(),
            "eval/score_std": score.std().item(),
        }
