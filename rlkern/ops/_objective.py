# SPDX-License-Identifier: Apache-2.0
"""The policy losses' shared arguments: an algorithm's declaration, coefficients and weights."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.algorithms import Algorithm
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.backends.eager.gates import GATE_COEFFICIENTS, TOKEN_GATES
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.backends.eager.levels import LEVELS
from rlkern.backends.eager.token_logprob import ACCUMULATION_DTYPE
from rlkern.backends.eager.token_objective import METRICS, Objective, Rows
from rlkern.ops import _check as check
from rlkern.ops._library import nobody_listens, number_tensor
from rlkern.ops._rows import of_each_token

ROWS = ", ".join(
    f"Tensor{'?' if name in Rows._field_defaults else ''} {name}" for name in Rows._fields
)
# coefficients float64 on the CPU: a float argument would make torch.compile compile anew for every
# value. Their order is Objective.numbers.
OBJECTIVE = "Tensor? cu_seqlens, str gate, str level, str kl, Tensor coefficients"
# Off by default, whatever the algorithm.
CLAMPS = {"log_ratio_min": -math.inf, "log_ratio_max": math.inf, "kl_max": math.inf}


def scalars(like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns tensors shaped like a loss and its metrics."""
    dtype = ACCUMULATION_DTYPE[like.dtype]
    return like.new_empty((), dtype=dtype), like.new_empty((len(METRICS),), dtype=dtype)


def coefficient_defaults(declared: Algorithm) -> dict[str, float | str]:
    """Returns every coefficient that an algorithm's loss takes with its default."""
    names = {"kl_estimator": declared.kl_estimator, "level": declared.level}
    return {**declared.defaults, **names, **CLAMPS}


def _named(declared: Algorithm, key: str, name: object, table: Mapping[str, object]) -> str:
    if name not in tuple(table):
        expected = ", ".join(table)
        raise ValueError(f"{declared.name}: {key} must be one of {expected}, got {name!r}")
    return str(name)


def _check_level(declared: Algorithm, level: str) -> None:
    """Raises ValueError if the gate of an algorithm makes nothing of the ratio of a level."""
    if level == declared.level:
        return
    if declared.gate in TOKEN_GATES:
        raise ValueError(
            f"{declared.name}: level must be token, as its gate {declared.gate} looks at no ratio "
            f"of a sequence, got {level!r}"
        )
    if "clipped_sequence" in (level, declared.level):
        raise ValueError(
            f"{declared.name}: level must be {declared.level}, as clipped_sequence takes the clip "
            f"widths that other levels leave to the gate, got {level!r}"
        )


def make_objective(declared: Algorithm, coefficients: Mapping[str, float | str]) -> Objective:
    """Returns the token objective of an algorithm, the coefficients laid over its defaults."""
    known = coefficient_defaults(declared)
    for name in declared.statistic_coef:
        del known[name]
        if name in coefficients:
            raise TypeError(
                f"{declared.name}: {name} is a coefficient of rlkern.statistics.factor, which makes"
                f" the {declared.statistic_row}"
            )
    for name in coefficients:
        if name not in known:
            raise TypeError(
                f"{declared.name}: unknown coefficient {name!r}, expected one of {', '.join(known)}"
            )
    known.update(coefficients)
    kl = _named(declared, "kl_estimator", known["kl_estimator"], KL_ESTIMATORS)
    level = _named(declared, "level", known["level"], LEVELS)
    _check_level(declared, level)

    names = (*declared.gate_coef, "kl_coef", "entropy_coef")
    numbers = check.numbers(declared.name, {name: known[name] for name in names})
    clamps = [check.bound(declared.name, name, known[name], off) for name, off in CLAMPS.items()]
    if clamps[0] > 0:
        raise ValueError(f"{declared.name}: log_ratio_min must not be positive, got {clamps[0]}")
    sizes = {**dict(zip(names[:-1], numbers)), **dict(zip(tuple(CLAMPS)[1:], clamps[1:]))}
    for name, number in sizes.items():
        if number < 0:
            raise ValueError(f"{declared.name}: {name} must not be negative, got {number}")
    *gate_coef, kl_coef, entropy_coef = numbers
    unused = [0.0] * (GATE_COEFFICIENTS - len(gate_coef))
    return Objective(
        declared.gate,
        level,
        kl,
        (*gate_coef, *unused),
        kl_coef,
        entropy_coef,
        *clamps,
    )


def _weights(
    op: str, mask: Tensor, weight: Tensor | None, declared: Algorithm, bounds: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    if weight is not None:
        return torch.where(mask, weight, 0.0)
    if mask.ndim == 1 and bounds is None and declared.aggregation != "token_mean":
        raise ValueError(
            f"{op}: {declared.name} averages over sequences, so mask must be (B, T), "
            f"or cu_seqlens or weight be given, got {check.describe(mask)}"
        )
    rows = mask.reshape(1, -1) if mask.ndim == 1 and bounds is None else mask
    weights = aggregate.token_weight(rows, declared.aggregation, cu_seqlens=bounds, dtype=dtype)
    return weights.reshape(mask.shape)


class LossArguments(NamedTuple):
    """What policy_loss and token_objective are both given, beside the scores."""

    advantage: Tensor
    mask: Tensor
    old_logprob: Tensor | None
    ref_logprob: Tensor | None
    correction: Tensor | None
    penalty: Tensor | None
    entropy_weight: Tensor | None
    nll_weight: Tensor | None
    cu_seqlens: Tensor | None
    weight: Tensor | None
    algorithm: str | Algorithm
    coefficients: Mapping[str, float | str]


class MadeObjective(NamedTuple):
    """An objective, and the form in which the operators take it."""

    objective: Objective
    form: tuple

    @staticmethod
    def of(declared: Algorithm, coefficients: Mapping[str, float | str]) -> "MadeObjective":
        objective = make_objective(declared, coefficients)
        names = objective.gate, objective.level, objective.kl
        return MadeObjective(objective, (*names, number_tensor(objective.numbers)))


# A training asks for a few objectives again and again, and making one takes as long as the loss of
# a small batch. By identity, so each stands beside its declaration, whose id is then nobody else's.
_MADE: dict[tuple, tuple[Algorithm, MadeObjective]] = {}
_MOST_MADE = 64
_REMEMBERED = frozenset((float, int, str))  # neither tensors nor arrays: they may change


def _made_objective(declared: Algorithm, coefficients: Mapping[str, float | str]) -> MadeObjective:
    known = _REMEMBERED.issuperset(map(type, coefficients.values()))
    if not known or not nobody_listens():
        return MadeObjective.of(declared, coefficients)
    key = (id(declared), *declared.defaults.values(), *coefficients.items())
    if key not in _MADE:
        made = MadeObjective.of(declared, coefficients)
        if len(_MADE) >= _MOST_MADE:
            _MADE.clear()
        _MADE[key] = declared, made
    return _MADE[key][1]


class CheckedArguments(NamedTuple):
    """The same, checked."""

    rows: Rows
    bounds: Tensor | None
    made: MadeObjective

    @property
    def objective(self) -> Objective:
        return self.made.objective

    def operator_form(self) -> tuple:
        """Returns what the operators take after the rows."""
        return self.bounds, *self.made.form


def _check_values(op: str, rows: Rows, mask: Tensor) -> None:
    """Raises ValueError for values that no loss is made of."""
    for name, x in rows._replace(old_logprob=None)._asdict().items():
        check.finite_values(op, name, x, mask)
    if (old := rows.old_logprob) is not None:  # where it is NaN, nobody knows it
        check.finite_values(op, "old_logprob", old, mask & ~old.isnan())
    check.not_negative_values(op, "penalty", rows.penalty, mask)
    check.unread_values(op, "entropy_weight", rows.entropy_weight, rows.weight)
    check.unread_values(op, "nll_weight", rows.nll_weight, rows.weight)


def checked_arguments(
    op: str, scores: Tensor, shape: torch.Size, given: LossArguments
) -> CheckedArguments:
    check.like(op, "mask", given.mask, shape, scores, (torch.bool,))
    if given.weight is not None:
        check.like(op, "weight", given.weight, shape, scores, check.FLOATS)
    bounds = check.sequence_bounds(op, given.cu_seqlens, shape, scores.device)
    declared = find_algorithm(given.algorithm)
    made = _made_objective(declared, given.coefficients)
    objective = made.objective
    if objective.level != "token" and bounds is None and len(shape) != 2:
        raise ValueError(
            f"{op}: {declared.name} compares whole sequences, so rows must be (B, T), "
            f"or (N,) with cu_seqlens, got {tuple(shape)}"
        )
    row = declared.statistic_row
    if declared.statistic and getattr(given, row) is None:
        raise ValueError(
            f"{op}: {declared.name} weighs tokens by a statistic of the whole batch, so {row}"
            " must be given: rlkern.statistics.factor(logprob, old_logprob, advantage, mask,"
            f" algorithm={declared.name!r}) makes it"
        )
    if objective.kl_coef != 0 and given.ref_logprob is None:
        raise ValueError(f"{op}: kl_coef is {objective.kl_coef}, so ref_logprob must be given")
    dtype = ACCUMULATION_DTYPE[scores.dtype]
    weight = _weights(op, given.mask, given.weight, declared, bounds, dtype)
    advantage = of_each_token(op, "advantage", given.advantage, shape, bounds)
    others = {name: getattr(given, name) for name in Rows._fields[2:]}
    if given.correction is not None:
        others["correction"] = of_each_token(op, "correction", given.correction, shape, bounds)
    rows = Rows(advantage, weight, **others)
    for name, x in zip(rows._fields, rows):
        if x is not None:
            check.like(op, name, x, shape, scores, check.FLOATS)
    if check.checks_values():
        _check_values(op, rows, given.mask)
    return CheckedArguments(rows, bounds, made)
