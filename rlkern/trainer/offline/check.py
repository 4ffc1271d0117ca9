# SPDX-License-Identifier: Apache-2.0
"""Settings of algorithms that learn from given answers: refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import rlkern
from rlkern.backends.eager.preference_loss import PREFERENCE_KINDS
from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.offline.pairs import check_source
from rlkern.trainer.settings import UNLESS_DECLARED


def is_preference(algorithm: Any) -> bool:
    """Returns True where the setting kind chooses the loss."""
    return getattr(algorithm, "loss", "") == rlkern.preference_loss.__name__


def coefficient_defaults(config: Config, algorithm: Any) -> dict[str, float]:
    """Returns every coefficient that the run's loss takes with its default."""
    defaults = dict(algorithm.defaults)
    kind = PREFERENCE_KINDS.get(str(config.kind)) if is_preference(algorithm) else None
    return defaults if kind is None else {**kind.defaults, **defaults}


def needs_reference(config: Config, algorithm: Any) -> bool:
    """Returns True where the loss of given answers reads the starting model."""
    if is_preference(algorithm):
        return PREFERENCE_KINDS[str(config.kind)].reference
    return "reference" in algorithm.needs


def check_offline(config: Config, algorithm: Any, coefficients: dict[str, float]) -> None:
    """Returns nothing; raises one sentence for resolved settings that cannot work."""
    if algorithm.learns_from == "rollouts":
        return
    for check in (_updates, _kind, _loss, _adapters):
        check(config, algorithm, coefficients)
    if algorithm.learns_from != "answers":
        check_source(config)


def _updates(config: Config, algorithm: Any, coefficients: dict[str, float]) -> None:
    for key in ("epochs", "minibatches"):
        if (getattr(config, key) or 1) != 1:
            raise UserError(
                f"{key} must be 1 for algorithm {algorithm.name}, whose every step is one optimizer"
                f" step on given answers, got {getattr(config, key)}; raise steps instead"
            )


def _kind(config: Config, algorithm: Any, coefficients: dict[str, float]) -> None:
    own = algorithm.settings.get("kind")
    if config.kind != UNLESS_DECLARED["kind"] and not is_preference(algorithm):
        raise UserError(
            f"kind {config.kind!r} is of preference losses, which algorithm {algorithm.name} has"
            " not: leave kind out"
        )
    if own is not None and config.kind != own:
        raise UserError(
            f"algorithm {algorithm.name} is kind {own!r}, got kind {config.kind!r}: leave kind out,"
            " or choose an algorithm of pairs that leaves it open"
        )


def _loss(config: Config, algorithm: Any, coefficients: dict[str, float]) -> None:
    """Tries the loss on one pair: it says itself what it does not take."""
    trial = TRIALS.get(algorithm.loss)
    if trial is not None:
        try:
            trial(config, {**algorithm.defaults, **coefficients})
        except (ValueError, TypeError) as error:
            raise UserError(f"algorithm {algorithm.name}: {error}") from error
    if algorithm.learns_from == "judged" and config.prompts < 2:
        raise UserError(
            f"prompts must be at least 2 for algorithm {algorithm.name}, whose divergence is"
            f" of answers to other prompts of the batch, got {config.prompts}"
        )
    sorts = is_preference(algorithm) and PREFERENCE_KINDS[str(config.kind)].sorted_by
    if sorts and config.micro_batches > 1:
        raise UserError(
            f"micro_batches must be 1 for kind {config.kind!r}, which sorts the whole batch, got"
            f" {config.micro_batches}"
        )


def _adapters(config: Config, algorithm: Any, coefficients: dict[str, float]) -> None:
    if algorithm.trains != "policy" and config.lora_rank:
        raise UserError(
            f"lora_rank must be 0 for algorithm {algorithm.name}, whose model is not saved as"
            f" adapters, got {config.lora_rank}"
        )


def _try_preference(config: Config, coefficients: dict[str, Any]) -> None:
    one, two = -torch.ones(2), torch.tensor([1, 1])
    kind = PREFERENCE_KINDS.get(str(config.kind))
    given: dict[str, Any] = dict(coefficients)
    if kind is not None and kind.reference:
        given.update(ref_chosen_logprob=one, ref_rejected_logprob=one)
    if kind is not None and kind.average:
        given.update(chosen_length=two, rejected_length=two)
    rlkern.preference_loss(one, one, kind=str(config.kind), **given)


def _try_kto(config: Config, coefficients: dict[str, Any]) -> None:
    one = torch.zeros(1)
    rlkern.kto_loss(one, one, one == 0, one.sum(), **coefficients)


def _try_reward_model(config: Config, coefficients: dict[str, Any]) -> None:
    one = torch.zeros(1)
    rlkern.reward_model_loss(one, one, **coefficients)


TRIALS: dict[str, Callable[[Config, dict[str, Any]], None]] = {
    rlkern.preference_loss.__name__: _try_preference,
    rlkern.kto_loss.__name__: _try_kto,
    rlkern.reward_model_loss.__name__: _try_reward_model,
}
