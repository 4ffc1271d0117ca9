# SPDX-License-Identifier: Apache-2.0
"""One formula, three homes: the C++ header and the Triton module against the reference."""

import importlib
import itertools
import math
import re
from pathlib import Path

import pytest
import torch

from rlkern.backends import _load
from rlkern.reference.token_objective import (
    GATES,
    KL_ESTIMATORS,
    METRICS,
    Objective,
    token_loss,
    token_metrics,
    token_objective,
)

NATIVE = _load("cpu")[0] if _load("cpu")[1] is None else None
HEADER = Path(__file__).resolve().parents[1] / "csrc/math/token_objective.h"
LOW, HIGH = 0.2, 0.28
# Far apart, near, almost equal and equal; the last are on the edges of the clip.
DIFFERENCES = (-30.0, -2.0, -0.1, -1e-4, -1e-9, 0.0, 1e-9, 1e-4, 0.1, 2.0, 20.0)
EDGES = (math.log(1 - LOW), math.log(1 + HIGH))
LOGPROBS = (0.0, -1e-6, -1.5, -40.0)
ADVANTAGES = (-2.0, 0.0, 0.7)
OBJECTIVES = list(itertools.product(GATES, KL_ESTIMATORS))
EVERY_FORMULA = pytest.mark.parametrize("gate,kl", OBJECTIVES)
needs_native = pytest.mark.skipif(NATIVE is None, reason="the C++ extension is not built")


def grid(dtype, has_old=True, has_ref=True):
    """Returns the rows of all combinations, in the order the raw operation takes them."""
    points = list(itertools.product(LOGPROBS, ADVANTAGES, (*DIFFERENCES, *EDGES), DIFFERENCES))
    logprob, advantage, from_old, from_ref = torch.tensor(points, dtype=dtype).T.unsqueeze(1)
    old = (logprob - from_old).contiguous() if has_old else None
    ref = (logprob - from_ref).contiguous() if has_ref else None
    entropy = 0.1 - logprob
    weight = 0.5 + torch.arange(logprob.numel(), dtype=dtype).remainder(3)[None]
    weight[0, ::7] = 0
    return logprob.contiguous(), entropy, advantage.contiguous(), weight, old, ref


def each_of(rows, step=1):
    """Yields the rows of one point of the grid after another."""
    for i in range(0, rows[0].numel(), step):
        yield [None if x is None else x[:, i : i + 1] for x in rows]


def in_cpp(rows, objective):
    """Returns (losses, metrics of some points, grad_logprob, grad_entropy), each point alone."""
    _, _, *slopes = NATIVE.token_objective(*rows, objective)
    loss = [NATIVE.token_objective(*point, objective)[0] for point in each_of(rows)]
    metrics = [NATIVE.token_objective(*point, objective)[1] for point in each_of(rows, 17)]
    return torch.stack(loss)[None], torch.stack(metrics), *slopes


def in_reference(rows, objective):
    """Returns the same from the reference."""
    _, _, *slopes = token_objective(*rows, objective)
    logprob, entropy, advantage, weight, old, ref = rows
    loss = weight * token_loss(logprob, entropy, advantage, old, ref, objective)
    metrics = [token_metrics(*point, objective) for point in each_of(rows, 17)]
    return loss, torch.stack(metrics), *slopes


def assert_twins(rows, objective):
    """Compares the C++ formulas with the reference, by the reference's own error in float32."""
    oracle_rows = [None if x is None else x.double() for x in rows]
    oracle, own = in_reference(oracle_rows, objective), in_reference(rows, objective)
    got = in_cpp([None if x is None else x.contiguous() for x in rows], objective)
    ulp = torch.finfo(rows[0].dtype).eps
    for name, x, eager, exact in zip(("loss", "metrics", "dlogprob", "dentropy"), got, own, oracle):
        assert x.dtype == rows[0].dtype
        error, allowed = (x.double() - exact).abs(), 2 * (eager.double() - exact).abs()
        bound = allowed + 8 * ulp * exact.abs().clamp(min=1)
        wrong = ~((error <= bound) | (x.double() == exact) | (x.isnan() & exact.isnan()))
        assert not wrong.any(), (name, objective, x[wrong][:5], exact[wrong][:5])


@needs_native
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@EVERY_FORMULA
def test_values_and_derivatives_in_cpp_are_the_references(gate, kl, dtype):
    assert_twins(grid(dtype), Objective(gate, (LOW, HIGH), kl, 0.3, 0.2))


@needs_native
@pytest.mark.parametrize("has_old,has_ref", ((False, True), (True, False), (False, False)))
@EVERY_FORMULA
def test_they_agree_without_an_old_or_a_reference_policy(gate, kl, has_old, has_ref):
    coef = 0.3 if has_ref else 0.0
    assert_twins(grid(torch.float64, has_old, has_ref), Objective(gate, (LOW, HIGH), kl, coef, 0.0))


@needs_native
@pytest.mark.parametrize("gate", GATES)
def test_at_a_ratio_exactly_on_the_edge_the_twins_agree(gate):
    # Ratio 1 is exact in any library: clips of width 0 put both edges there.
    zero, one = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    advantage = torch.tensor([[-2.0, 0.0, 0.7]], dtype=torch.float64)
    for width in ((0.0, 0.0), (0.0, 0.5), (0.5, 0.0)):
        objective = Objective(gate, width, "k3", 0.0, 0.0)
        rows = (-one, zero, advantage, one, -one, None)
        results = zip(NATIVE.token_objective(*rows, objective), token_objective(*rows, objective))
        assert all(x.equal(y) for x, y in results)


@EVERY_FORMULA
def test_the_derivatives_of_the_reference_are_those_of_its_values(gate, kl):
    rows = grid(torch.float64)
    near = ((rows[0] - rows[4]).exp() < 4) & ((rows[0] - rows[5]).abs() < 4)
    objective, step = Objective(gate, (LOW, HIGH), kl, 0.3, 0.2), 1e-5
    for edge in EDGES:
        near &= ((rows[0] - rows[4]) - edge).abs() > 1e-3
    rows = [x[near][None] for x in rows]
    _, _, slope, entropy_slope = token_objective(*rows, objective)
    for which, expected in ((0, slope), (1, entropy_slope)):
        shifted = [list(rows), list(rows)]
        for sign, side in zip((1, -1), shifted):
            side[which] = side[which] + sign * step
        up, down = (in_reference(side, objective)[0] for side in shifted)
        torch.testing.assert_close((up - down) / (2 * step), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("difference", (1e-12, 1e-8, 1e-5))
def test_the_third_estimator_keeps_its_digits_when_the_policies_almost_agree(difference):
    d = torch.tensor(difference, dtype=torch.float64)
    estimators = [KL_ESTIMATORS["k3"](d, torch.zeros_like(d))]
    if NATIVE is not None:
        rows = [x.reshape(1, 1) for x in (d, d * 0, d * 0, d * 0 + 1, d, d * 0)]
        objective = Objective("reinforce", (0.0, 0.0), "k3", 1.0, 0.0)
        estimators.append(NATIVE.token_objective(*rows, objective)[0])
    for value in estimators:  # d²/2 up to the rounding of a difference of numbers like d
        assert abs(value.item() - difference**2 / 2) <= 2e-16 * difference + difference**3


def enumerators(name):
    body = re.search(rf"enum (?:class )?{name} : int {{([^}}]*)}}", HEADER.read_text())
    return [word.strip() for word in body.group(1).split(",")]


def test_the_header_numbers_the_formulas_as_the_reference_does():
    assert enumerators("Gate") == list(GATES)
    assert enumerators("Kl") == list(KL_ESTIMATORS)


def test_the_header_numbers_the_metrics_as_the_reference_does():
    camel = ["k" + "".join(map(str.capitalize, name.split("_"))) for name in METRICS]
    assert enumerators("Metric") == camel
    counts = re.search(r"kSummedMetrics = (\d+), kMetrics = (\d+)", HEADER.read_text())
    assert counts.groups() == ("8", str(len(METRICS)))
    assert METRICS[8:] == ("ratio_min", "ratio_max")


def test_every_formula_has_a_function_of_its_name_in_the_header():
    defined = set(re.findall(r"RLKERN_HD Dual<T> (\w+)\(", HEADER.read_text()))
    assert defined >= {*GATES, *(f"kl_{name}" for name in KL_ESTIMATORS)}


def test_the_triton_tables_are_in_the_references_order():
    pytest.importorskip("triton")
    twin = importlib.import_module("rlkern.kernels._math")
    for table, ours in ((GATES, twin.GATES), (KL_ESTIMATORS, twin.KL_ESTIMATORS)):
        assert list(ours) == list(table)
        names = [f.__name__ for f in table.values()]
        assert [f.fn.__name__ for f in ours.values()] == names
