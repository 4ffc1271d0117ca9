# SPDX-License-Identifier: Apache-2.0
"""The losses of given answers as modules over pieces of a batch, as data parallelism wraps them.

Each has the call of rlkern.trainer.step.Losses: (piece, coefficients, train_policy).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import rlkern
from rlkern import LossOutput
from rlkern.backends.eager.preference_loss import PREFERENCE_KINDS
from rlkern.trainer.config import Config
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.offline.reward_model import scores
from rlkern.trainer.rollout.data import Rollout
from rlkern.trainer.scoring import hidden_states

Found = tuple[LossOutput, None, dict[str, float]]


@dataclass
class Given:
    """B = Q·G given answers to Q prompts with what the losses read: pairs where G is 2, chosen
    before rejected.

    weight (Q,) of each pair, or of each answer that is judged alone; ref_logprob (B,) summed over
    tokens; desirable (B,) bool; kl scalar, of mismatched answers.
    """

    rollout: Rollout
    weight: Tensor
    ref_logprob: Tensor | None = None
    desirable: Tensor | None = None
    kl: Tensor | None = None

    def piece(self, first: int, last: int) -> Given:
        """Returns the answers to prompts first..last-1, their weights as they are."""
        G = self.rollout.group_size
        rows = slice(first * G, last * G)
        return dataclasses.replace(
            self,
            rollout=self.rollout.piece(first, last),
            weight=self.weight[first:last],
            ref_logprob=None if self.ref_logprob is None else self.ref_logprob[rows],
            desirable=None if self.desirable is None else self.desirable[rows],
        )


def answer_logprob(policy: Policy, rollout: Rollout, config: Config) -> Tensor:
    """Returns the log-probability (B,) of each answer, at temperature 1: Σ_t log π of its
    tokens."""
    hidden = hidden_states(policy, rollout, share_prompts=config.share_prompts)
    with policy.precision():
        logprob = TOKEN_LOGPROB[config.loss](policy, hidden, rollout)
    return rlkern.sequence_logprob(logprob, rollout.mask)


def _linear(policy: Policy, hidden: Tensor, rollout: Rollout) -> Tensor:
    head = policy.head.parameters()
    weight = head.pop("weight")
    return rlkern.linear_token_logprob(
        hidden, weight, rollout.token, mask=rollout.mask, **head
    ).logprob


def _fused(policy: Policy, hidden: Tensor, rollout: Rollout) -> Tensor:
    logits = policy.head.logits(hidden)
    return rlkern.token_logprob(logits, rollout.token, mask=rollout.mask, inplace=True).logprob


def _eager(policy: Policy, hidden: Tensor, rollout: Rollout) -> Tensor:
    with rlkern.use_backend("eager"):
        logits = policy.head.logits(hidden)
        return rlkern.token_logprob(logits, rollout.token, mask=rollout.mask).logprob


# By what the setting `loss` says.
TOKEN_LOGPROB: dict[str, Callable[[Policy, Tensor, Rollout], Tensor]] = {
    "linear": _linear,
    "fused": _fused,
    "eager": _eager,
}


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what belongs to the chosen answers, and to the rejected ones."""
    return x[0::2], x[1::2]


class GivenLosses(torch.nn.Module):
    """What the losses of given answers hold: the model and the settings."""

    def __init__(self, policy: Policy, config: Config):
        super().__init__()
        self.policy, self.config = policy, config
        self.trained = torch.nn.ModuleList([policy.model])


class PairLosses(GivenLosses):
    """preference_loss of pairs, of the kind that the settings name."""

    def forward(self, part: Given, coefficients: dict, train_policy: bool = True) -> Found:
        """Returns (loss, None, no differences)."""
        chosen, rejected = halves(answer_logprob(self.policy, part.rollout, self.config))
        kind, asked = str(self.config.kind), dict(coefficients)
        if not PREFERENCE_KINDS[kind].sorted_by:
            asked["weight"] = part.weight
        if part.ref_logprob is not None:
            names = ("ref_chosen_logprob", "ref_rejected_logprob")
            asked.update(zip(names, halves(part.ref_logprob), strict=True))
        if PREFERENCE_KINDS[kind].average:
            lengths = halves(part.rollout.mask.sum(-1))
            asked.update(zip(("chosen_length", "rejected_length"), lengths, strict=True))
        found = rlkern.preference_loss(chosen, rejected, kind=kind, **asked)
        return found, None, {}


class JudgedLosses(GivenLosses):
    """kto_loss of answers that are each desirable or not."""

    def forward(self, part: Given, coefficients: dict, train_policy: bool = True) -> Found:
        """Returns (loss, None, no differences)."""
        assert part.ref_logprob is not None and part.desirable is not None and part.kl is not None
        logprob = answer_logprob(self.policy, part.rollout, self.config)
        found = rlkern.kto_loss(
            logprob, part.ref_logprob, part.desirable, part.kl, weight=part.weight, **coefficients
        )
        return found, None, {}


class ScoreLosses(GivenLosses):
    """reward_model_loss of pairs; the policy is a model with one output."""

    def forward(self, part: Given, coefficients: dict, train_policy: bool = True) -> Found:
        """Returns (loss, None, no differences)."""
        chosen, rejected = halves(scores(self.policy, part.rollout))
        found = rlkern.reward_model_loss(chosen, rejected, weight=part.weight, **coefficients)
        return found, None, {}
