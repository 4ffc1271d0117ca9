# SPDX-License-Identifier: Apache-2.0
"""What an algorithm declares, and the registry that finds the declarations by scanning this folder."""

import importlib
import pkgutil
from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(frozen=True)
class Algorithm:
    """One algorithm: how advantages are made, which token objective is optimised, how it is averaged.

    name          as users type it
    paper         citation with equation number
    gate          the surrogate, a key of rlkern.reference.token_objective.GATES
    gate_coef     names of the two coefficients the gate takes, in order ("" where it takes none)
    advantage     "normalized", "centered", "leave_one_out" (of a group), "batch_centered" or "gae"
    aggregation   a mode of rlkern.aggregate.token_weight
    kl_estimator  a key of rlkern.reference.token_objective.KL_ESTIMATORS
    defaults      value of every coefficient
    sources       where each default comes from
    """

    name: str
    paper: str
    gate: str
    advantage: str
    aggregation: str
    gate_coef: tuple[str, str] = ("", "")
    kl_estimator: str = "k3"
    defaults: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=None)
def _scan() -> dict[str, Algorithm]:
    package = importlib.import_module("rlkern.algorithms")
    modules = [importlib.import_module(f"rlkern.algorithms.{m.name}")
               for m in pkgutil.iter_modules(package.__path__)]  # fmt: skip
    found = [m.ALGORITHM for m in modules if hasattr(m, "ALGORITHM")]
    return {algorithm.name: algorithm for algorithm in sorted(found, key=lambda a: a.name)}


def algorithms() -> dict[str, Algorithm]:
    """Returns every registered algorithm by name.

    >>> algorithms()["grpo"].aggregation
    'sequence_token_mean'
    """
    return dict(_scan())


def algorithm(name: str) -> Algorithm:
    """Returns the algorithm of this name.

    >>> algorithm("gpro")
    Traceback (most recent call last):
    ValueError: algorithm must be one of grpo, ppo, reinforce, got 'gpro'
    """
    try:
        return _scan()[name]
    except KeyError:
        known = ", ".join(_scan())
        raise ValueError(f"algorithm must be one of {known}, got {name!r}") from None
