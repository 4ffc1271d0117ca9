# SPDX-License-Identifier: Apache-2.0
"""What can be said against settings before a model is loaded or a file written, beyond the settings
themselves: losses that refuse a coefficient, data and packages that are not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import rlkern
from rlkern.algorithms import Algorithm
from rlkern.backends.eager.preference_loss import PREFERENCE_KINDS
from rlkern.ops._objective import coefficient_defaults as policy_coefficients
from rlkern.ops._objective import make_objective
from rlkern.runs.errors import UserError
from rlkern.runs.parquet import check_installed
from rlkern.runs.settings.names import nearest
from rlkern.runs.trackers import check_trackers
from rlkern.statistics import statistic_coefficients
from rlkern.trainer.models.load import check_model_name
from rlkern.trainer.offline.pairs import check_source
from rlkern.trainer.online.shaping import check_overlong
from rlkern.trainer.processes.parallel import check_parallel
from rlkern.trainer.processes.world import World
from rlkern.trainer.reward.functions import load_rewards
from rlkern.trainer.rollout.engines import check_engine
from rlkern.trainer.rollout.turns import most_turns
from rlkern.trainer.settings import Settings
from rlkern.trainer.tasks.registry import make_task
from rlkern.trainer.tasks.task import Task


def check(settings: Settings, world: World, *, resume: bool = False) -> None:
    """Raises UserError for settings with which a run would end later; one that is resumed has its
    model in a checkpoint, wherever that which it started from is now."""
    check_coefficients(settings)
    if not resume:
        check_model_name(settings.model)
    if settings.teacher is not None:
        check_model_name(settings.teacher)
    check_engine(settings)
    check_parallel(settings, world)
    _check_sorted(settings, world)
    if settings.declared.learns_from in ("pairs", "judged"):
        check_source(settings)
    task = make_task(settings)
    load_rewards(settings, task)
    check_task(settings, task)
    check_trackers(settings.output.log, "output.log")
    if settings.declared.online and settings.output.completions:
        check_installed("output.completions", "--output.completions 0")


def check_coefficients(settings: Settings) -> None:
    """Raises UserError for a coefficient that the loss does not take."""
    known = coefficient_defaults(settings)
    for name in settings.coefficients:
        if name not in known:
            raise UserError(
                f"algorithm {settings.algorithm} has no coefficient {name!r}: it takes"
                f" {', '.join(known) or 'none'}{nearest(name, known)}"
            )
    try:
        TRIALS[settings.declared.loss](settings, dict(settings.coefficients))
    except (ValueError, TypeError) as error:
        sentence = str(error)
        for said in (settings.algorithm, settings.declared.loss):
            sentence = sentence.removeprefix(f"{said}: ")
        raise UserError(f"algorithm {settings.algorithm}: {sentence}") from error


def coefficient_defaults(settings: Settings) -> dict[str, Any]:
    """Returns every coefficient that the run's loss takes with its default."""
    declared = settings.declared
    found: dict[str, Any] = dict(declared.defaults)
    if declared.loss == rlkern.preference_loss.__name__:
        kind = PREFERENCE_KINDS.get(settings.loss.kind)
        return {**(kind.defaults if kind else {}), **found}
    return policy_coefficients(declared) if isinstance(declared, Algorithm) else found


def check_task(settings: Settings, task: Task) -> None:
    """Raises UserError if the task does not suit the settings."""
    longest = most_turns(settings, task) * (settings.rollout.max_new_tokens or task.max_new_tokens)
    check_overlong(settings, longest)
    talks = task.reply is not None or task.begin is not None
    if talks and settings.declared.learns_from in ("pairs", "judged"):
        raise UserError(
            f"algorithm {settings.algorithm} compares whole answers, and task {task.name} is a"
            " conversation; use another task, or an algorithm that samples its own answers"
        )


def _check_sorted(settings: Settings, world: World) -> None:
    """Raises UserError if a loss that sorts the whole batch would see a part of it."""
    kind = PREFERENCE_KINDS.get(settings.loss.kind)
    if settings.declared.learns_from == "judged" and settings.batch.prompts < 2:
        raise UserError(
            f"batch.prompts must be at least 2 for algorithm {settings.algorithm}, which measures"
            f" its divergence on answers to other prompts, got {settings.batch.prompts}"
        )
    if settings.declared.loss != rlkern.preference_loss.__name__ or not (kind and kind.sorted_by):
        return
    if settings.batch.micro_batches > 1:
        raise UserError(
            f"batch.micro_batches must be 1 for loss.kind {settings.loss.kind!r}, which sorts the"
            f" whole batch, got {settings.batch.micro_batches}"
        )
    if world.size > 1:
        raise UserError(
            f"loss.kind {settings.loss.kind!r} sorts the whole batch, which one process must hold:"
            f" start one, got {world.size}"
        )


def _try_policy(settings: Settings, coefficients: dict[str, Any]) -> None:
    declared = settings.declared
    if not isinstance(declared, Algorithm):
        return
    names = declared.statistic_coef
    if declared.statistic:
        statistic_coefficients(declared, {k: x for k, x in coefficients.items() if k in names})
    make_objective(declared, {k: x for k, x in coefficients.items() if k not in names})


def _try_preference(settings: Settings, coefficients: dict[str, Any]) -> None:
    one, two = -torch.ones(2), torch.tensor([1, 1])
    kind = PREFERENCE_KINDS.get(settings.loss.kind)
    given: dict[str, Any] = dict(coefficients)
    if kind is not None and kind.reference:
        given.update(ref_chosen_logprob=one, ref_rejected_logprob=one)
    if kind is not None and kind.average:
        given.update(chosen_length=two, rejected_length=two)
    rlkern.preference_loss(one, one, kind=settings.loss.kind, **given)


def _try_kto(settings: Settings, coefficients: dict[str, Any]) -> None:
    one = torch.zeros(1)
    rlkern.kto_loss(one, one, one == 0, one.sum(), **coefficients)


def _try_reward_model(settings: Settings, coefficients: dict[str, Any]) -> None:
    one = torch.zeros(1)
    rlkern.reward_model_loss(one, one, **coefficients)


# Each tries a loss on one pair or none: it says itself what it does not take.
TRIALS: dict[str, Callable[[Settings, dict[str, Any]], None]] = {
    rlkern.policy_loss.__name__: _try_policy,
    rlkern.preference_loss.__name__: _try_preference,
    rlkern.kto_loss.__name__: _try_kto,
    rlkern.reward_model_loss.__name__: _try_reward_model,
}
