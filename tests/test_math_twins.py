# SPDX-License-Identifier: Apache-2.0
"""One formula, two homes: the C++ headers against the reference.

The Triton twin is held in test_triton_math.py.
"""

import re
from pathlib import Path

import pytest
import torch
from objective_helpers import (
    CLAMPS,
    DIFFERENCES,
    EVERY_GATE,
    EVERY_KL,
    EVERY_LEVEL,
    grid,
    has_edges,
    objective_of,
    sequences,
)

from rlkern.backends import _load
from rlkern.backends.eager.gates import GATES
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.backends.eager.levels import LEVELS
from rlkern.backends.eager.token_objective import (
    METRICS,
    SUMMED_METRICS,
    Objective,
    Rows,
    token_loss,
    token_metrics,
    token_objective,
)

NATIVE = _load("cpu")[0] if _load("cpu")[1] is None else None
HEADERS = Path(__file__).resolve().parents[1] / "csrc/math"
NEAR = (-2.0, -0.1, 0.0, 0.1, 2.0)
SOME = 5  # of every so many sequences the metrics are compared
EVERY_DTYPE = pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
needs_native = pytest.mark.skipif(NATIVE is None, reason="the C++ extension is not built")


def taken(x, index):
    return None if x is None else x[index].contiguous()


def each_sequence(logprob, entropy, rows, step=1):
    """Yields the sequences one after another, as a backend takes them."""
    for i in range(0, len(logprob), step):
        at = slice(i, i + 1)
        yield logprob[at], entropy[at], Rows(*(taken(x, at) for x in rows))


def in_cpp(points, objective):
    """Returns (losses, metrics, grad_logprob, grad_entropy), each sequence alone."""
    whole = NATIVE.token_objective(*points, None, objective)
    each = [NATIVE.token_objective(*point, None, objective) for point in each_sequence(*points)]
    loss, metrics, *slopes = (torch.stack(x) for x in zip(*each))
    for x, y in zip(slopes, whole[2:]):
        torch.testing.assert_close(x.squeeze(1), y, rtol=0, atol=0, equal_nan=True)
    return loss, metrics[::SOME], *whole[2:]


def in_reference(points, objective):
    """Returns the same from the reference."""
    logprob, entropy, rows = points
    slopes = token_objective(*points, None, objective)[2:]
    chosen = rows.selected()
    loss = token_loss(logprob, entropy, chosen, objective)
    loss = torch.where(rows.weight != 0, loss, 0.0).sum(-1)
    some = each_sequence(*points, SOME)
    metrics = [token_metrics(*point, objective, None) for point in some]
    return loss, torch.stack(metrics), *slopes


def wide(points):
    logprob, entropy, rows = points
    return (
        logprob.double(),
        entropy.double(),
        Rows(*(None if x is None else x.double() for x in rows)),
    )


def assert_twins(points, objective):
    """Compares the C++ formulas with the reference, by the reference's own error in float32.

    Where the reference leaves float32, C++ may leave it alike or be right.
    """
    oracle, own = in_reference(wide(points), objective), in_reference(points, objective)
    ulp = torch.finfo(points[0].dtype).eps
    names = ("loss", "metrics", "dlogprob", "dentropy")
    for name, x, eager, exact in zip(names, in_cpp(points, objective), own, oracle):
        assert x.dtype == points[0].dtype
        error, allowed = (x.double() - exact).abs(), 2 * (eager.double() - exact).abs()
        # A rounding of a log ratio of 100 is 100 roundings of the ratio.
        bound = torch.where(allowed.isfinite(), allowed, 0.0) + 100 * ulp * exact.abs().clamp(min=1)
        alike = (x == eager) | (x.isnan() & eager.isnan()) | (x.double() == exact.to(x.dtype))
        wrong = ~((error <= bound) | alike)
        assert not wrong.any(), (name, objective, x[wrong][:5], eager[wrong][:5], exact[wrong][:5])


@needs_native
@EVERY_DTYPE
@EVERY_GATE
def test_values_and_derivatives_of_a_gate_in_cpp_are_the_references(gate, dtype):
    assert_twins(grid(dtype), objective_of(gate))


@needs_native
@EVERY_DTYPE
@EVERY_KL
def test_values_and_derivatives_of_a_kl_estimator_in_cpp_are_the_references(kl, dtype):
    # The slopes through r and through k3 cancel at level token: far from 1 that is no oracle.
    from_refs = DIFFERENCES if kl != "level_k3" else NEAR
    logprob, entropy, rows = grid(dtype, from_refs)
    near = (rows.advantage == 0.7).squeeze(-1) & (logprob == -1.5).squeeze(-1)
    rows = Rows(*(taken(x, near) for x in rows))
    assert_twins(
        (taken(logprob, near), taken(entropy, near), rows), objective_of("ppo_clip", kl=kl)
    )


@needs_native
@EVERY_DTYPE
@EVERY_LEVEL
@EVERY_GATE
def test_values_and_derivatives_of_a_level_in_cpp_are_the_references(gate, level, dtype):
    assert_twins(sequences(dtype), objective_of(gate, level))


@needs_native
@EVERY_DTYPE
@EVERY_GATE
def test_values_and_derivatives_of_a_clamped_ratio_in_cpp_are_the_references(gate, dtype):
    assert_twins(grid(dtype), objective_of(gate, **CLAMPS))
    for level in LEVELS:
        assert_twins(sequences(dtype), objective_of(gate, level, **CLAMPS))


@needs_native
@EVERY_DTYPE
@EVERY_KL
def test_values_and_derivatives_of_a_clamped_kl_in_cpp_are_the_references(kl, dtype):
    logprob, entropy, rows = grid(dtype, NEAR)
    assert_twins((logprob, entropy, rows), objective_of("ppo_clip", kl=kl, **CLAMPS))


@needs_native
@EVERY_LEVEL
@pytest.mark.parametrize("absent", [*Rows._field_defaults, "all"])
def test_they_agree_without_what_may_be_absent(level, absent):
    logprob, entropy, rows = sequences(torch.float64)
    gone = Rows._field_defaults if absent == "all" else {absent: None}
    rows = rows._replace(**gone)
    coef = 0.0 if rows.ref_logprob is None else 0.3
    for gate in ("ppo_clip", "topr"):
        assert_twins((logprob, entropy, rows), objective_of(gate, level, kl_coef=coef))


@needs_native
@EVERY_GATE
def test_at_a_ratio_exactly_on_the_edge_the_twins_agree(gate):
    # Ratio 1 is exact in any library: clips of width 0 put both edges there.
    zero, one = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    advantage = torch.tensor([[-2.0, 0.0, 0.7]], dtype=torch.float64)
    for width in ((0.0, 0.0), (0.0, 0.5), (0.5, 0.0)):
        coefficients = (*width, 1.0, 0.0) if has_edges(gate) else objective_of(gate).gate_coef
        for level in LEVELS:
            objective = Objective(gate, level, "k3", coefficients, 0.0, 0.0)
            arguments = (-one, zero, Rows(advantage, one, -one), None, objective)
            results = zip(NATIVE.token_objective(*arguments), token_objective(*arguments))
            assert all(x.equal(y) for x, y in results), level


@pytest.mark.parametrize("difference", (1e-12, 1e-8, 1e-5))
def test_the_third_estimator_keeps_its_digits_when_the_policies_almost_agree(difference):
    d = torch.tensor(difference, dtype=torch.float64)
    estimators = [KL_ESTIMATORS["k3"](d, torch.zeros_like(d), d)]
    if NATIVE is not None:
        zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
        rows = Rows(zero, one, None, zero)
        objective = objective_of("reinforce", kl_coef=1.0, entropy_coef=0.0)
        estimators.append(NATIVE.token_objective(d.reshape(1, 1), zero, rows, None, objective)[0])
    for value in estimators:  # d²/2 up to the rounding of a difference of numbers like d
        assert abs(value.item() - difference**2 / 2) <= 2e-16 * difference + difference**3


@needs_native
@EVERY_DTYPE
def test_the_slope_of_the_weighted_third_estimator_keeps_its_digits_far_from_the_reference(dtype):
    d = torch.tensor([DIFFERENCES], dtype=dtype)
    zero, one = torch.zeros_like(d), torch.ones_like(d)
    rows = Rows(zero, one, d - 0.5, zero)  # ratio exp(0.5), and no other loss
    objective = objective_of("importance", kl="importance_k3", kl_coef=1.0)
    slope = NATIVE.token_objective(d, zero, rows, None, objective)[2]
    ratio = (d - (d - 0.5)).exp()
    torch.testing.assert_close(slope, ratio * d, rtol=4 * torch.finfo(dtype).eps, atol=0)


def enumerators(name):
    text = "".join(path.read_text() for path in sorted(HEADERS.glob("*.h")))
    (body,) = re.findall(rf"enum (?:class )?{name} : int {{([^}}]*)}}", text)
    return [word.strip() for word in body.split(",")]


def test_the_headers_number_formulas_and_metrics_as_the_reference_does():
    assert enumerators("Gate") == [f.__name__ for f in GATES.values()] == list(GATES)
    assert enumerators("Level") == [f.__name__ for f in LEVELS.values()] == list(LEVELS)
    assert enumerators("Kl") == [f.__name__ for f in KL_ESTIMATORS.values()]
    camel = ["k" + "".join(map(str.capitalize, name.split("_"))) for name in METRICS]
    assert enumerators("Metric") == [name.replace("KlK", "Kl") for name in camel]
    text = (HEADERS / "token_objective.h").read_text()
    counts = re.search(r"kSummedMetrics = (\d+), kMetrics = (\d+)", text).groups()
    assert counts == (str(len(SUMMED_METRICS)), str(len(METRICS)))
