# SPDX-License-Identifier: Apache-2.0
"""What an algorithm declares, and the registry that finds the declarations by scanning."""

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Algorithm:
    """One algorithm: how advantages are made, what is optimised, how it is averaged.

    name          as users type it
    paper         citation with equation number
    gate          the surrogate, a key of rlkern.reference.gates.GATES
    gate_coef     names of the coefficients the gate takes, in order
    level         whose ratio the gate sees, a key of rlkern.reference.levels.LEVELS
    advantage     "normalized", "centered", "leave_one_out" (of a group), "batch_centered" or "gae"
    aggregation   a mode of rlkern.aggregate.token_weight
    kl_estimator  a key of rlkern.reference.kl.KL_ESTIMATORS
    defaults      value of every coefficient
    sources       where each default comes from
    """

    name: str
    paper: str
    gate: str
    advantage: str
    aggregation: str
    gate_coef: tuple[str, ...] = ()
    level: str = "token"
    kl_estimator: str = "k3"
    defaults: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


_FOUND: dict[str, Algorithm] = {}


def scan(package: str, path: Iterable[str]) -> None:
    """Registers the ALGORITHM of every module in a package."""
    modules = [importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(path)]
    declared = [m.ALGORITHM for m in modules if hasattr(m, "ALGORITHM")]
    _FOUND.update((a.name, a) for a in sorted(declared, key=lambda a: a.name))


def algorithms() -> dict[str, Algorithm]:
    """Returns every registered algorithm by name.

    >>> algorithms()["grpo"].aggregation
    'sequence_token_mean'
    """
    return dict(_FOUND)


def algorithm(name: str) -> Algorithm:
    """Returns the algorithm of this name.

    >>> algorithm("gpro")
    Traceback (most recent call last):
    ValueError: algorithm must be one of grpo, ppo, reinforce, got 'gpro'
    """
    if name not in _FOUND:
        raise ValueError(f"algorithm must be one of {', '.join(_FOUND)}, got {name!r}")
    return _FOUND[name]
