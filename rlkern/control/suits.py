# SPDX-License-Identifier: Apache-2.0
"""Whether an algorithm suits an environment."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from rlkern.control.algorithms import algorithms
from rlkern.control.declaration import BOX, DISCRETE, TABLE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.settings import Settings, declared
from rlkern.runs.errors import UserError


def kind_of_actions(space: spaces.Space) -> str | None:
    """Returns discrete or box, None for another kind.

    >>> kind_of_actions(spaces.Discrete(3))
    'discrete'
    """
    if isinstance(space, spaces.Discrete):
        return DISCRETE
    # Off-policy actors reach from one bound to the other, so the distance must be a number, too.
    with np.errstate(over="ignore"):
        bounded = isinstance(space, spaces.Box) and bool(np.isfinite(space.high - space.low).all())
    return BOX if bounded else None


def unsuited(algorithm: ControlAlgorithm, environments: Environments) -> str | None:
    """Returns why an algorithm cannot act in an environment, None if it can."""
    actions, observations = environments.actions, environments.observations
    kind = kind_of_actions(actions)
    if kind not in algorithm.actions:
        wanted = " or ".join(algorithm.actions)
        if BOX in algorithm.actions and isinstance(actions, spaces.Box):
            wanted += " actions within finite bounds"
        else:
            wanted += " actions"
        return f"needs {wanted}, and those of {environments.name} are {actions}"
    if algorithm.observations == TABLE and environments.states is None:
        return (
            f"keeps a table of all states, and those of {environments.name} cannot be counted"
            f" ({observations})"
        )
    one_hot = isinstance(observations, spaces.Discrete)
    vector = isinstance(observations, spaces.Box) and len(observations.shape) == 1
    if algorithm.observations == BOX and not (one_hot or vector):
        return (
            f"reads a vector of numbers, and {environments.name} shows {observations}; wrap it in"
            " gymnasium.wrappers.FlattenObservation and register that"
        )
    return None


def check(settings: Settings, environments: Environments) -> None:
    """Raises UserError if the algorithm of a run cannot act in its environment, naming those that
    can."""
    algorithm = declared(settings)
    why = unsuited(algorithm, environments)
    if why is not None:
        others = [each.name for each in algorithms().values() if not unsuited(each, environments)]
        use = f"; use {', '.join(others)}" if others else ""
        raise UserError(f"{algorithm.name} {why}{use}")
    algorithm.learner.check(settings, environments)
    usual = type(settings).model_fields["eval_length"].default
    if settings.eval_length != usual and not environments.endless:
        raise UserError(
            f"eval_length is for environments without a time limit of their own, and"
            f" {environments.name} has one: leave it out, got {settings.eval_length}"
        )
