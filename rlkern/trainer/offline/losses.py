# SPDX-License-Identifier: Apache-2.0
"""The losses of given answers: preference pairs, judged answers, and reward models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import rlkern
from rlkern.backends.eager.preference_loss import PREFERENCE_KINDS
from rlkern.trainer.losses import Found, Losses
from rlkern.trainer.models.policy import Policy, run_rows
from rlkern.trainer.reward.model import scores
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings


def answer_logprob(policy: Policy, rows: Rows, settings: Settings) -> Tensor:
    """Returns the log-probability (B,) of each answer, at temperature 1: Σ_t log π of its
    tokens."""
    return routed_logprob(policy, rows, settings)[0]


def routed_logprob(policy: Policy, rows: Rows, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """Returns the same and the loss that a mixture of experts adds for its router."""
    hidden, router = run_rows(policy, rows, share_prompts=settings.memory.share_prompts)
    with policy.precision():
        logprob = TOKEN_LOGPROB[settings.loss.path](policy, hidden, rows)
    return rlkern.sequence_logprob(logprob, rows.mask), router


def _linear(policy: Policy, hidden: Tensor, rows: Rows) -> Tensor:
    head = policy.head.parameters()
    weight = head.pop("weight")
    return rlkern.linear_token_logprob(hidden, weight, rows.token, mask=rows.mask, **head).logprob


def _fused(policy: Policy, hidden: Tensor, rows: Rows) -> Tensor:
    logits = policy.head.logits(hidden)
    return rlkern.token_logprob(logits, rows.token, mask=rows.mask, inplace=True).logprob


def _eager(policy: Policy, hidden: Tensor, rows: Rows) -> Tensor:
    with rlkern.use_backend("eager"):
        logits = policy.head.logits(hidden)
        return rlkern.token_logprob(logits, rows.token, mask=rows.mask).logprob


# By the setting loss.path.
TOKEN_LOGPROB: dict[str, Callable[[Policy, Tensor, Rows], Tensor]] = {
    "linear": _linear,
    "fused": _fused,
    "eager": _eager,
}


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what belongs to the chosen answers, and to the rejected ones."""
    return x[0::2], x[1::2]


class PairLosses(Losses):
    """preference_loss of pairs, of the kind that the settings name."""

    def forward(self, rows: Rows, train_policy: bool = True) -> Found:
        """Returns the loss of the pairs."""
        logprob, router = routed_logprob(self.policy, rows, self.settings)
        chosen, rejected = halves(logprob)
        kind = self.settings.loss.kind
        asked: dict[str, Any] = dict(self.settings.coefficients)
        if not PREFERENCE_KINDS[kind].sorted_by:
            asked["weight"] = rows.prompt_weight
        if rows.ref_total is not None:
            names = ("ref_chosen_logprob", "ref_rejected_logprob")
            asked.update(zip(names, halves(rows.ref_total), strict=True))
        if PREFERENCE_KINDS[kind].average:
            lengths = halves(rows.mask.sum(-1))
            asked.update(zip(("chosen_length", "rejected_length"), lengths, strict=True))
        return Found(rlkern.preference_loss(chosen, rejected, kind=kind, **asked), router=router)


class JudgedLosses(Losses):
    """kto_loss of answers that are each desirable or not."""

    def forward(self, rows: Rows, train_policy: bool = True) -> Found:
        """Returns the loss of the answers."""
        assert rows.ref_total is not None and rows.desirable is not None
        assert rows.divergence is not None
        coefficients: dict[str, Any] = dict(self.settings.coefficients)
        logprob, router = routed_logprob(self.policy, rows, self.settings)
        loss = rlkern.kto_loss(
            logprob,
            rows.ref_total,
            rows.desirable,
            rows.divergence,
            weight=rows.prompt_weight,
            **coefficients,
        )
        return Found(loss, router=router)


class ScoreLosses(Losses):
    """reward_model_loss of pairs; the policy is a model with one output."""

    def forward(self, rows: Rows, train_policy: bool = True) -> Found:
        """Returns the loss of the pairs."""
        chosen, rejected = halves(scores(self.policy, rows))
        coefficients: dict[str, Any] = dict(self.settings.coefficients)
        return Found(
            rlkern.reward_model_loss(chosen, rejected, weight=rows.prompt_weight, **coefficients)
        )
