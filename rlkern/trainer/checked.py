# SPDX-License-Identifier: Apache-2.0
"""All that can be said against settings before a model is loaded."""

from __future__ import annotations

from typing import Any

from rlkern.ops._objective import make_objective
from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.models.policy import check_model_name, resolve_device
from rlkern.trainer.offline.check import check_offline, coefficient_defaults
from rlkern.trainer.online.shaping import check_shaping
from rlkern.trainer.preflight import check_settings
from rlkern.trainer.rollout.engines import check_engine
from rlkern.trainer.rollout.turns import check_turns, turns
from rlkern.trainer.settings import asked_coefficients, find_algorithm, resolve, validate
from rlkern.trainer.tasks.task import Task, make_task


def check(config: Config) -> tuple[Any, dict[str, float]]:
    """Returns the algorithm and its coefficients; raises one sentence for settings that
    cannot work."""
    validate(config)
    algorithm = find_algorithm(config.algorithm)
    coefficients = asked_coefficients(config)
    known = coefficient_defaults(resolve(config), algorithm)
    for name in coefficients:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise UserError(
                f"algorithm {algorithm.name} has no coefficient {name!r}: it takes {takes}"
            )
    check_objective(algorithm, coefficients)
    check_settings(config, algorithm)
    check_offline(resolve(config), algorithm, coefficients)
    check_engine(config)
    resolve_device(config.device)
    check_model_name(config.model)
    return algorithm, coefficients


def check_objective(algorithm: Any, coefficients: dict[str, float]) -> None:
    """Returns nothing; raises one sentence for coefficients that rlkern.policy_loss refuses."""
    if algorithm.learns_from == "rollouts":
        try:
            make_objective(algorithm, coefficients)
        except (TypeError, ValueError) as error:
            raise UserError(f"algorithm {error}") from error


def task_of(config: Config) -> Task:
    """Returns the task that the settings name."""
    return make_task(
        config.task,
        seed=config.seed,
        eval_items=config.eval_items,
        shots=config.shots,
        template=config.prompt_template,
        options=config.task_options,
    )


def checked_task(config: Config, algorithm: Any) -> tuple[Task, int]:
    """Returns the task of resolved settings and the most turns of its conversations; raises one
    sentence for settings or an algorithm that do not fit it."""
    task = task_of(config)
    max_turns = turns(config, task)
    check_turns(task, algorithm)
    longest = max_turns * (config.max_new_tokens or task.max_new_tokens)
    check_shaping(config, algorithm, longest=longest)
    return task, max_turns
