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
from rlkern.backends.eager.token_logprob import accumulation_dtype
from rlkern.backends.eager.token_objective import METRICS, Objective, Rows
from rlkern.ops import _check as check
from rlkern.ops._library import number_tensor
from rlkern.ops._rows import of_each_token

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

    names = (*declared.gate_coef, "kl_coef", "entropy_coef")
    numbers = check.numbers(declared.name, {name: known[name] for name in names})
    for name, number in zip(names[:-1], numbers):
        if number < 0:
            raise ValueError(f"{declared.name}: {name} must not be negative, got {number}")
    *gate_coef, kl_coef, entropy_coef = numbers
    unused = [0.0] * (GATE_COEFFICIENTS - len(gate_coef))
    return Objective(
        declared.gate,
        declared.level,
        str(known["kl_estimator"]),
        (*gate_coef, *unused),
        kl_coef,
        entropy_coef,
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
    cu_seqlens: Tensor | None
    weight: Tensor | None
    algorithm: str | Algorithm
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
    if given.weight is not None:
        check.like(op, "weight", given.weight, shape, scores, check.FLOATS)
        check.finite_values(op, "weight", given.weight, given.mask)
    bounds = check.sequence_bounds(op, given.cu_seqlens, shape, scores.device)
    declared = find_algorithm(given.algorithm)
    objective = make_objective(declared, given.coefficients)
    if declared.level != "token" and bounds is None and len(shape) != 2:
        raise ValueError(
            f"{op}: {declared.name} compares whole sequences, so rows must be (B, T), "
            f"or (N,) with cu_seqlens, got {tuple(shape)}"
        )
    if objective.kl_coef != 0 and given.ref_logprob is None:
        raise ValueError(f"{op}: kl_coef is {objective.kl_coef}, so ref_logprob must be given")
    weight = _weights(
        op, given.mask, given.weight, declared, bounds, accumulation_dtype(scores.dtype)
    )
    advantage = of_each_token(op, "advantage", given.advantage, shape, bounds)
    correction = given.correction
    if correction is not None:
        correction = of_each_token(op, "correction", correction, shape, bounds)
    rows = Rows(advantage, weight, given.old_logprob, given.ref_logprob, correction)
    for name, x in zip(rows._fields, rows):
        if x is not None:
            check.like(op, name, x, shape, scores, check.FLOATS)
            check.finite_values(op, name, x, given.mask)
    return CheckedArguments(rows, bounds, objective)
