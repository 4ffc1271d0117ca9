# SPDX-License-Identifier: Apache-2.0
"""Learners of preferences: of pairs, of answers judged one by one, and of reward models."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.backends.eager.preference_loss import PREFERENCE_KINDS
from rlkern.trainer.collect import Warn
from rlkern.trainer.data import chat
from rlkern.trainer.evaluate import task_accuracies
from rlkern.trainer.losses import Losses
from rlkern.trainer.models.policy import Policy, without_gradient
from rlkern.trainer.offline.losses import (
    JudgedLosses,
    PairLosses,
    ScoreLosses,
    answer_logprob,
    halves,
)
from rlkern.trainer.offline.pairs import Judgement, Pair, Pairs, answer_ids
from rlkern.trainer.offline.supervised import take_step, with_times
from rlkern.trainer.parts import Parts
from rlkern.trainer.reward.model import scores
from rlkern.trainer.rollout.text import given_rows
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings.reads import SAMPLED, facts
from rlkern.trainer.show.report import Sample, StepAnswers, Stopwatch, note, update_values
from rlkern.trainer.tasks.task import epochs
from rlkern.trainer.update import Updater


class Preferences(ABC):
    """What learners of preferences share: the order of their pairs, the step, and the held-out
    accuracy of a policy's implicit reward."""

    def __init__(self, parts: Parts, pairs: Pairs) -> None:
        self.parts, self.pairs = parts, pairs

    @abstractmethod
    def losses(self) -> Losses:
        """Returns the loss of the pairs."""

    @abstractmethod
    def batch(self) -> tuple[Rows, list[Sample]]:
        """Returns the next batch, and some of it as text."""

    def step(self, updater: Updater, warn: Warn) -> tuple[dict[str, float], StepAnswers]:
        """Returns the metrics and the answers of the next step; the run moves one step on."""
        parts = self.parts
        watch = Stopwatch(parts.policy.device)
        with updater.gathered():
            rows, samples = self.batch()
        watch.lap("score")
        result = take_step(parts, updater, rows)
        note(parts, [result], False, 0.0, warn)
        found = rlkern.preference_metrics_dict(torch.stack(result.metrics).sum(0))
        found.pop("count")
        # A reward model has no log-probabilities.
        known = {key: value for key, value in found.items() if value == value}
        rest = update_values(parts, [dataclasses.replace(result, metrics=[])])
        return with_times({**known, **rest}, watch, result), StepAnswers(samples)

    def rows(self, pairs: list[Pair]) -> Rows:
        """Returns pairs as tokens, each prompt with its chosen and its rejected answer."""
        return pair_rows(self.parts, pairs)

    def next_of(self, rows: list[Any]) -> list[Any]:
        """Returns the next batch of rows, which come in a new order in each epoch; the run moves
        on."""
        progress, count = self.parts.progress, self.parts.settings.batch.prompts
        order, first = epochs(rows, self.parts.settings.seed), progress.position
        progress.position += count
        return [order(place) for place in range(first, first + count)]

    def logprob(self, policy: Policy, rows: Rows) -> Tensor:
        """Returns the log-probability (B,) of each answer, without gradient."""
        settings = self.parts.settings
        return without_gradient(
            lambda part: answer_logprob(policy, part, settings),
            rows,
            world=self.parts.world,
            parts=settings.batch.micro_batches,
        )

    def ref_total(self, rows: Rows) -> Tensor | None:
        """Returns the log-probability (B,) of each answer under the reference, if there is one."""
        reference = self.parts.reference
        return None if reference is None else self.logprob(reference, rows)

    def held_out(self) -> list[Rows]:
        """Returns the held-out pairs as tokens, some at a time."""
        at_once, held = max(1, self.parts.settings.eval.batch // 2), self.pairs.held_out
        parts = [held[first : first + at_once] for first in range(0, len(held), at_once)]
        return [self.rows(part) for part in parts]

    def evaluate(self) -> dict[str, float]:
        """Returns what held-out pairs say, and the accuracies on the task if the pairs are its."""
        run = facts(self.parts.settings)
        return {**(task_accuracies(self.parts) if run.answers_task else {}), **self.of_pairs()}

    def of_pairs(self) -> dict[str, float]:
        """Returns the share of held-out pairs whose chosen answer has the higher implicit reward,
        by sums and by means over tokens."""
        parts, margins, means = self.parts, list[Tensor](), list[Tensor]()
        for rows in self.held_out():
            reward, ref = self.logprob(parts.policy, rows), self.ref_total(rows)
            if ref is not None:
                reward = reward - ref
            margins.append(torch.sub(*halves(reward)))
            means.append(torch.sub(*halves(reward / rows.mask.sum(-1))))
        found = {
            "eval/pair_accuracy": share_right(torch.cat(margins)),
            "eval/pair_accuracy_normalized": share_right(torch.cat(means)),
            "eval/pair_margin": torch.cat(margins).mean().item(),
        }
        compared = "eval/pair_accuracy" + ("_normalized" if self.averages else "")
        return {"eval/accuracy": found[compared], **found}

    @property
    def averages(self) -> bool:
        """Whether the loss compares means over tokens."""
        return False


def pair_rows(parts: Parts, pairs: list[Pair], *, whole: bool = False) -> Rows:
    """Returns pairs as tokens; every answer of `whole` ones ends with the end of text."""
    # If the task ends an answer by a text, a sampled one holds it already.
    sampled = parts.settings.pairs.source == SAMPLED
    stop = parts.task.stop if sampled and not whole else ""
    answers = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    ids = [each for pair in pairs for each in answer_ids(pair)]
    asked = [pair.prompt for pair in pairs]
    return given_rows(parts.policy, asked, answers, stop=stop, keep=parts.task.keep, ids=ids)


def judged_rows(parts: Parts, judged: list[Judgement]) -> Rows:
    """Returns answers that are judged by themselves as tokens."""
    stop = parts.task.stop if parts.settings.pairs.source == SAMPLED else ""
    asked, answers = [each.prompt for each in judged], [each.answer for each in judged]
    ids = [each.ids for each in judged]
    return given_rows(parts.policy, asked, answers, stop=stop, keep=parts.task.keep, ids=ids)


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
        (chat.shown(pair.prompt), chat.shown_answer(text), reward)
        for pair in pairs[:4]
        for text, reward in ((pair.chosen, 1.0), (pair.rejected, 0.0))
    ]


class FromPairs(Preferences):
    """Learns a policy from pairs by rlkern.preference_loss, of any kind."""

    def losses(self) -> Losses:
        """Returns the loss of the pairs."""
        return PairLosses(self.parts.policy, self.parts.settings)

    @property
    def averages(self) -> bool:
        """Whether the loss compares means over tokens."""
        return PREFERENCE_KINDS[self.parts.settings.loss.kind].average

    def batch(self) -> tuple[Rows, list[Sample]]:
        """Returns the next pairs."""
        pairs = self.next_of(self.pairs.train)
        rows = self.rows(pairs)
        weight = even_weight(len(pairs), rows.token.device)
        found = dataclasses.replace(rows, prompt_weight=weight, ref_total=self.ref_total(rows))
        return found, shown(pairs)


class Judged(Preferences):
    """Learns a policy from answers that are each desirable or not: the two of every pair, by
    themselves."""

    def losses(self) -> Losses:
        """Returns the loss of the answers."""
        return JudgedLosses(self.parts.policy, self.parts.settings)

    def batch(self) -> tuple[Rows, list[Sample]]:
        """Returns the next answers."""
        parts, reference = self.parts, self.parts.reference
        assert reference is not None
        judged = self.next_of(self.pairs.judgements())
        rows = judged_rows(parts, judged)
        others = mismatched(rows)
        found = dataclasses.replace(
            rows,
            prompt_weight=even_weight(len(judged), rows.token.device),
            ref_total=self.ref_total(rows),
            desirable=torch.tensor([each.desirable for each in judged], device=rows.token.device),
            divergence=rlkern.mismatched_kl(
                self.logprob(parts.policy, others), self.logprob(reference, others)
            ),
        )
        return found, [
            (chat.shown(each.prompt), chat.shown_answer(each.answer), float(each.desirable))
            for each in judged[:8]
        ]

    def of_pairs(self) -> dict[str, float]:
        """Returns the same of pairs; where each held-out answer is judged by itself, the chance
        that a desirable one has the higher implicit reward than one that is not."""
        parts, held = self.parts, self.pairs.judged_held_out
        if not held:
            return super().of_pairs()
        at_once, found = parts.settings.eval.batch, list[Tensor]()
        for first in range(0, len(held), at_once):
            rows = judged_rows(parts, held[first : first + at_once])
            ref = self.ref_total(rows)
            assert ref is not None
            found.append(self.logprob(parts.policy, rows) - ref)
        reward = torch.cat(found)
        good = torch.tensor([each.desirable for each in held], device=reward.device)
        margin = (reward[good][:, None] - reward[~good]).flatten()
        right = share_right(margin)
        return {
            "eval/accuracy": right,
            "eval/pair_accuracy": right,
            "eval/pair_margin": margin.mean().item(),
        }


def mismatched(rows: Rows) -> Rows:
    """Returns each prompt with the answer to the next, the last with the answer to the first."""
    names = ("token", "mask", "rollout_logprob", "present")
    return dataclasses.replace(rows, **{name: getattr(rows, name).roll(-1, 0) for name in names})


class Scored(Preferences):
    """Learns a reward model from pairs; its trunk is that of the starting model."""

    def losses(self) -> Losses:
        """Returns the loss of the scores of pairs."""
        return ScoreLosses(self.parts.policy, self.parts.settings)

    def rows(self, pairs: list[Pair]) -> Rows:
        """Returns pairs as tokens; every answer ends as those do that the model will be asked
        about."""
        return pair_rows(self.parts, pairs, whole=True)

    def batch(self) -> tuple[Rows, list[Sample]]:
        """Returns the next pairs."""
        pairs = self.next_of(self.pairs.train)
        rows = self.rows(pairs)
        weight = even_weight(len(pairs), rows.token.device)
        return dataclasses.replace(rows, prompt_weight=weight), shown(pairs)

    def of_pairs(self) -> dict[str, float]:
        """Returns the share of held-out pairs whose chosen answer has the higher score, and the
        scores' mean and spread."""
        parts = self.parts
        score = torch.cat(
            [
                without_gradient(
                    lambda part: scores(parts.policy, part),
                    rows,
                    world=parts.world,
                    parts=parts.settings.batch.micro_batches,
                )
                for rows in self.held_out()
            ]
        )
        margin = torch.sub(*halves(score))
        return {
            "eval/accuracy": share_right(margin),
            "eval/pair_accuracy": share_right(margin),
            "eval/pair_margin": margin.mean().item(),
            "eval/score_mean": score.mean().item(),
            "eval/score_std": score.std().item(),
        }
