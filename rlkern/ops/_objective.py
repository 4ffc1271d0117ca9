# SPDX-License-Identifier: Apache-2.0
"""The policy losses' shared arguments: an algorithm's declaration, coefficients and weights."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.algorithms import Algorithm
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.backends.eager.gates import GATE_COEFFICIENTS
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.backends.eager.levels import Sequences
from rlkern.backends.eager.token_logprob import accumulation_dtype
from rlkern.backends.eager.token_objective import METRICS, Objective, Rows
from rlkern.ops import _check as check
from rlkern.ops._library import number_tensor
from rlkern.ops._rows import sequence_bounds

ROWS = (
    "Tensor advantage, Tensor weight, Tensor? old_logprob, Tensor? ref_logprob, Tensor? correction"
)
SOFTMAX = "Tensor? inv_temperature, float softcap, Tensor? keep"
# coefficients (6,) float64 on the CPU: a float argument would make torch.compile compile anew for
# every value. Their order is Objective.numbers.
OBJECTIVE = "Tensor? cu_seqlens, str gate, str level, str kl, Tensor coefficients"


def scalars(like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns tensors shaped like a loss and its metrics."""
    dtype = accumulation_dtype(like.dtype)
    return like.new_empty((), dtype=dtype), like.new_empty((len(METRICS),), dtype=dtype)


def make_objective(declared: Algorithm, coefficients: Mapping[str, float | str]) -> Objective:
    """Returns the token objective of an algorithm, the coefficients laid over its defaults."""
    known: dict[str, float | str] = {**declared.defaults, "kl_estimator": declared.kl_estimator}
    for name in declared.statistic_coef:
        del known[name]
        if name in coefficients:
            raise TypeError(
                f"{declared.name}: {name} is a coefficient of rlkern.statistics.factor, which makes"
                " the correction"
            )
    for name in coefficients:
        if name not in known:
            raise TypeError(
                f"{declared.name}: unknown coefficient {name!r}, expected one of {', '.join(known)}"
            )
    known.update(coefficients)
    if known["kl_estimator"] not in tuple(KL_ESTIMATORS):
        raise ValueError(
            f"{declared.name}: kl_estimator must be one of {', '.join(KL_ESTIMATORS)}, "
            f"got {known['kl_estimator']!r}"
        )

    def value(name: str) -> float:
        number = check.number(declared.name, name, known[name])
        if name != "entropy_coef" and number < 0:
            raise ValueError(f"{declared.name}: {name} must not be negative, got {number}")
        return number

    gate_coef = [value(name) for name in declared.gate_coef]
    unused = [0.0] * (GATE_COEFFICIENTS - len(gate_coef))
    return Objective(
        declared.gate,
        declared.level,
        str(known["kl_estimator"]),
        (*gate_coef, *unused),
        value("kl_coef"),
        value("entropy_coef"),
    )


def expand_advantage(
    op: str, advantage: Tensor, shape: torch.Size, bounds: Tensor | None
) -> Tensor:
    """Returns the advantage of each token, from that of each token or of each sequence."""
    check.tensor(op, "advantage", advantage, check.FLOATS)
    if advantage.shape == shape:
        return advantage
    if bounds is not None and advantage.ndim == 1 and advantage.numel() == bounds.numel() - 1:
        return advantage[Sequences(shape, bounds).of_row]
    if len(shape) > 1 and advantage.shape == shape[:1]:
        return advantage.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    short = tuple(shape[:1]) if bounds is None else (bounds.numel() - 1,)
    raise ValueError(
        f"{op}: advantage must be {tuple(shape)} or {short}, got {check.describe(advantage)}"
    )


def _weights(
    op: str, mask: Tensor, weight: Tensor | None, declared: Algorithm, bounds: Tensor | None
) -> Tensor:
    if weight is not None:
        check.like(op, "weight", weight, mask.shape, mask, check.FLOATS)
        check.finite_values(op, "weight", weight, mask)
        return torch.where(mask, weight, 0.0)
    if mask.ndim == 1 and bounds is None and declared.aggregation != "token_mean":
        raise ValueError(
            f"{op}: {declared.name} averages over sequences, so mask must be (B, T), "
            f"or cu_seqlens or weight be given, got {check.describe(mask)}"
        )
    rows = mask.reshape(1, -1) if mask.ndim == 1 and bounds is None else mask
    weights = aggregate.token_weight(rows, declared.aggregation, cu_seqlens=bounds)
    return weights.reshape(mask.shape)


class LossArguments(NamedTuple):
    """What policy_loss and token_objective are both given, beside the scores."""

    advantage: Tensor
    mask: Tensor
    old_logprob: Tensor | None
    ref_logprob: Tensor | None
    correction: Tensor | None
    cu_seqlens: Tensor | None
    weight: Tensor | None
    algorithm: str
    coefficients: Mapping[str, float | str]


class CheckedArguments(NamedTuple):
    """The same, checked."""

    rows: Rows
    bounds: Tensor | None
    objective: Objective

    def operator_form(self) -> tuple:
        """Returns what the operators take after the rows."""
        names = self.objective.gate, self.objective.level, self.objective.kl
        return self.bounds, *names, number_tensor(self.objective.numbers)


def checked_arguments(
    op: str, scores: Tensor, shape: torch.Size, given: LossArguments
) -> CheckedArguments:
    check.like(op, "mask", given.mask, shape, scores, (torch.bool,))
    bounds = sequence_bounds(op, given.cu_seqlens, shape, scores.device)
    declared = find_algorithm(given.algorithm)
    objective = make_objective(declared, given.coefficients)
    if declared.level != "token" and bounds is None and len(shape) != 2:
        raise ValueError(
            f"{op}: {declared.name} compares whole sequences, so rows must be (B, T), "
            f"or (N,) with cu_seqlens, got {tuple(shape)}"
        )
    if declared.statistic and given.correction is None:
        raise ValueError(
            f"{op}: {declared.name} weighs tokens by a statistic of the whole batch, so correction"
            " must be given: rlkern.statistics.factor(logprob, old_logprob, advantage, mask,"
            f" algorithm={declared.name!r}) makes it"
        )
    if objective.kl_coef != 0 and given.ref_logprob is None:
        raise ValueError(f"{op}: kl_coef is {objective.kl_coef}, so ref_logprob must be given")
    weight = _weights(op, given.mask, given.weight, declared, bounds)
    advantage = expand_advantage(op, given.advantage, shape, bounds)
    rows = Rows(advantage, weight, given.old_logprob, given.ref_logprob, given.correction)
    for name, x in zip(rows._fields, rows):
        if x is not None:
            check.like(op, name, x, shape, scores, check.FLOATS)
            check.finite_values(op, name, x, given.mask)
    return CheckedArguments(rows, bounds, objective)
