# SPDX-License-Identifier: Apache-2.0
"""Log ratios whose exponentials overflow: the definition's gradients against the kernels'."""

import math

import pytest
import torch
from backend_helpers import CHOSEN, served_by

import rlkern
from rlkern.backends.eager.kl import KL_ESTIMATORS

KERNELS = [name for name in CHOSEN if name != "eager"]
EVERY_KERNEL = pytest.mark.parametrize("backend", KERNELS)
# The interpreter is slow: one algorithm of each formula is enough for it.
FORMULAS = {(a.gate, a.level): name for name, a in rlkern.algorithms().items()}.values()
ALGORITHMS = [
    (name, backend)
    for backend in KERNELS
    for name in (FORMULAS if backend == "triton" else rlkern.algorithms())
]
LOG_RATIOS = (-1000.0, -100.0, -88.5, -20.0, 0.0, 20.0, 88.5, 100.0, 1000.0)
ADVANTAGES = (-2.0, 0.0, 0.5)


def scored(log_ratio, dtype, tokens=2):
    """Returns (logprob, old_logprob) of an answer whose tokens all have this log ratio."""
    old, logprob = min(-1.5, -1.5 - log_ratio), min(-1.5, -1.5 + log_ratio)
    return [torch.full((1, tokens), x, dtype=dtype) for x in (logprob, old)]


def loss_and_gradient(backend, logprob, old, advantage, **options):
    leaf, mask = logprob.clone().requires_grad_(), torch.ones_like(logprob, dtype=torch.bool)
    given = torch.as_tensor(advantage, dtype=logprob.dtype).expand(len(logprob))
    weight = torch.ones_like(logprob)
    with served_by(backend):
        out = rlkern.token_objective(leaf, given, mask, old_logprob=old, weight=weight, **options)
        (grad,) = torch.autograd.grad(out.loss, leaf)
    return out.loss.detach(), grad


def points(dtype, log_ratios=LOG_RATIOS):
    """Returns (logprob, old_logprob, advantage) of answers of every log ratio and advantage."""
    columns = [(*scored(x, dtype), a) for x in log_ratios for a in ADVANTAGES]
    logprob, old, advantage = zip(*columns)
    return torch.cat(logprob), torch.cat(old), torch.tensor(advantage, dtype=dtype)


def assert_alike(got, expected):
    """Asserts equal numbers or equal infinities; NaN is neither."""
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6, equal_nan=False)


@pytest.mark.parametrize("name,backend", ALGORITHMS)
def test_eager_and_kernel_have_the_same_gradient_however_far_the_policies_are_apart(name, backend):
    slow = backend == "triton"
    for dtype in (torch.float32,) if slow else (torch.float32, torch.float64):
        rows = points(dtype, (-100.0, 100.0) if slow else LOG_RATIOS)
        options = {"algorithm": name, "ref_logprob": rows[0] - 0.3}
        if (declared := rlkern.algorithms()[name]).statistic:
            options[declared.statistic_row] = torch.ones_like(rows[0])
        found = [loss_and_gradient(b, *rows, **options)[1] for b in ("eager", backend)]
        assert_alike(*found)


@pytest.mark.parametrize("backend", CHOSEN)
def test_a_thousand_tokens_that_each_moved_a_little_are_held_and_not_lost(backend):
    logprob, old = scored(0.1, torch.float32, tokens=1000)  # the answer's ratio is exp(100)
    loss, grad = loss_and_gradient(backend, logprob, old, 0.5, algorithm="rloo")
    assert loss.item() == pytest.approx(-0.5 * 1.2 * 1000) and grad.eq(0).all()
    loss, grad = loss_and_gradient(backend, logprob, old, 0.0, algorithm="rloo")
    assert loss == 0 and grad.eq(0).all()  # a group of equal rewards
    loss, grad = loss_and_gradient(backend, logprob, old, -0.5, algorithm="rloo")
    assert loss == math.inf and grad.eq(math.inf).all()


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize(
    "log_ratio,d", ((-1000, -1000), (-100, -100), (-100, -3), (-20, 100), (20, -3), (20, 0.5))
)
def test_an_importance_weight_of_nothing_makes_nothing_of_an_infinite_divergence(
    log_ratio, d, backend
):
    logprob, old = scored(log_ratio, torch.float32, tokens=1)
    options = {"ref_logprob": logprob - d, "kl_coef": 1.0, "kl_estimator": "importance_k3"}
    loss, grad = loss_and_gradient(backend, logprob, old, 0.0, algorithm="ppo", **options)
    log_ratio, d = (logprob - old).item(), (logprob - (logprob - d)).item()

    def power(x):
        return math.exp(x) if x < 88 else math.inf

    ratio = power(log_ratio)
    exact = power(log_ratio - d) - ratio * (1 - d)  # r·(exp(−d) − 1 + d)
    assert loss.item() == pytest.approx(exact, rel=1e-3, abs=1e-30)
    assert grad.item() == pytest.approx(ratio * d, rel=1e-3, abs=1e-30)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("log_ratio,d", ((100, -3), (100, -0.5), (100, 2), (80, -20), (-100, -120)))
@pytest.mark.parametrize("estimator,beside", (("importance_k1", 1.0), ("importance_k3", 0.0)))
def test_a_slope_whose_ratio_overflows_is_infinite_and_one_that_does_not_is_right(
    estimator, beside, log_ratio, d, backend
):
    logprob, old = scored(log_ratio, torch.float32, tokens=1)
    options = {"ref_logprob": logprob - d, "kl_coef": 1.0, "kl_estimator": estimator}
    _, grad = loss_and_gradient(backend, logprob, old, 0.0, algorithm="ppo", **options)
    d = (logprob - (logprob - d)).item()
    ratio = math.exp(log_ratio) if log_ratio < 88 else math.inf
    assert grad.item() == pytest.approx(ratio * (d + beside), rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("log_ratio,d", ((-100, -100), (-60, -100), (-95, -90)))
def test_a_ratio_of_the_level_that_vanishes_meets_an_infinite_divergence_as_one_power(
    log_ratio, d, backend
):
    logprob, old = scored(log_ratio, torch.float32, tokens=1)
    options = {"ref_logprob": logprob - d, "kl_coef": 1.0, "kl_estimator": "level_k3"}
    loss, grad = loss_and_gradient(backend, logprob, old, 0.0, algorithm="ppo", **options)
    exact = math.exp(log_ratio - d)  # r·exp(−d); r·(1 − d) is nothing beside it
    assert loss.item() == pytest.approx(exact, rel=1e-4)
    # The slopes through r and through k3 cancel to r·d.
    assert abs(grad.item()) <= 1e-5 * exact


@EVERY_KERNEL
@pytest.mark.parametrize(
    "estimator",
    # Of a ratio and of k3, both infinite: level_k3 has only a slope through each.
    [k for k in KL_ESTIMATORS if not k.startswith("importance") and k != "level_k3"],
)
def test_eager_and_kernel_have_the_same_slope_of_every_divergence(estimator, backend):
    logprob, ref, _ = points(torch.float32)
    options = {"kl_coef": 1.0, "kl_estimator": estimator, "ref_logprob": ref}
    found = [
        loss_and_gradient(b, logprob, logprob, 0.0, algorithm="reinforce", **options)[1]
        for b in ("eager", backend)
    ]
    assert_alike(*found)


@pytest.mark.parametrize("backend", CHOSEN)
def test_a_factor_of_zero_drops_a_term_that_is_infinite(backend):
    logprob, old = scored(100.0, torch.float32)
    options = {"correction": torch.tensor([[0.0, 1.0]]), "algorithm": "ppo"}
    loss, grad = loss_and_gradient(backend, logprob, old, -1.0, **options)
    assert loss == math.inf and grad.tolist() == [[0.0, math.inf]]
    options["correction"] = torch.zeros(1, 2)
    far = {"ref_logprob": logprob + 100, "kl_coef": 0.0}  # only looked at, for the metrics
    loss, grad = loss_and_gradient(backend, logprob, old, -1.0, **options, **far)
    assert loss == 0 and grad.eq(0).all()


@pytest.mark.parametrize("advantage", (-1.0, 1.0))
@pytest.mark.parametrize("backend", CHOSEN)
def test_a_parabola_whose_ratio_overflows_is_infinite_and_not_nan(backend, advantage):
    rows = scored(100.0, torch.float32)
    loss, grad = loss_and_gradient(backend, *rows, advantage, algorithm="cfpo")
    assert loss == math.inf and grad.eq(math.inf).all()


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("excess", (-0.99, 5.0, 17.5, 20.0, 40.0))
def test_the_slope_of_a_saturated_gate_keeps_its_digits(excess, backend):
    log_ratio = math.log1p(excess)  # σ(τ·(r − 1)) rounds to 1 from r = 18 on
    logprob, old = scored(log_ratio, torch.float32, tokens=1)
    _, grad = loss_and_gradient(backend, logprob, old, 2.0, algorithm="sapo")
    ratio = (logprob - old).double().exp().item()
    x = ratio - 1  # τ is 1
    exact = -2.0 * 4 * ratio * math.exp(-x) / (1 + math.exp(-x)) ** 2
    assert grad.item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("at", (0, 2))
def test_a_ratio_that_is_nan_shows_in_the_bounds_of_the_ratio(monkeypatch, at, backend):
    monkeypatch.delenv("RLKERN_CHECK_VALUES")
    old = torch.full((1, 3), -1.0)
    logprob, mask = old - 0.5, old < 0
    logprob[0, at] = math.nan
    with served_by(backend):
        out = rlkern.token_objective(logprob, torch.ones(1), mask, old_logprob=old)
    found = rlkern.metrics_dict(out.metrics)
    assert math.isnan(found["ratio/min"]) and math.isnan(found["ratio/max"])


@pytest.mark.parametrize("backend", CHOSEN)
def test_a_token_far_from_its_answer_takes_no_digits_of_the_answers_ratio(backend):
    old = torch.full((1, 2), -2000.0)
    logprob = old + torch.tensor([[1024.0, -1023.99]])
    loss, _ = loss_and_gradient(backend, logprob, old, -1.0, algorithm="gspo_token")
    exact = (logprob - old).double().mean().exp().item()
    assert loss.item() == pytest.approx(2 * exact, rel=1e-6)


@pytest.mark.parametrize("algorithm", ("ppo", "gspo", "rloo", "cispo"))
@pytest.mark.parametrize("backend", CHOSEN)
def test_a_token_whose_old_probability_nobody_knows_has_the_ratio_one(backend, algorithm):
    logprob = torch.tensor([[-1.0, -2.0, -0.5]])
    old = logprob - torch.tensor([[0.02, 0.1, -0.1]])
    filled, missing = old.clone(), old.clone()
    filled[0, 1], missing[0, 1] = logprob[0, 1], math.nan
    got, expected = (
        loss_and_gradient(backend, logprob, x, 0.7, algorithm=algorithm) for x in (missing, filled)
    )
    assert got[0].isfinite()
    assert_alike(got[0], expected[0])
    assert_alike(got[1], expected[1])
