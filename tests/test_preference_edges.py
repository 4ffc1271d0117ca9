# SPDX-License-Identifier: Apache-2.0
"""Preference losses of empty, certain and saturated answers, and their weights in float64."""

import math

import pytest
import torch
from test_preference import AVERAGING, EPS, EQUATIONS, B, arguments_of, dpo, lost, pairs

import rlkern


@pytest.mark.parametrize("empty", (0, 1))
@pytest.mark.parametrize("kind", AVERAGING)
def test_the_mean_of_an_empty_answer_is_zero_and_so_is_its_gradient(kind, empty):
    logprob, length = pairs()
    leaves = [x.clone().requires_grad_() for x in logprob[:2]]
    length = [n.clone() for n in length]
    length[empty][2] = 0
    h = arguments_of(kind, logprob, length)[2]
    h[empty][2] = 0.0
    out = lost(kind, (*leaves, *logprob[2:]), length)
    out.loss.backward()
    if kind != "orpo":  # its odds of p = 1 are infinite
        terms = [EQUATIONS[kind](c, r, 0.6) for c, r in zip(*(x.tolist() for x in h))]
        assert out.loss.item() == pytest.approx(sum(terms) / B, rel=1e-12)
    assert out.loss.isfinite() and out.metrics.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert leaves[empty].grad[2] == 0 and leaves[1 - empty].grad.count_nonzero() >= B - 1


def test_the_odds_of_an_answer_that_is_certain_are_large_and_not_infinite():
    chosen, rejected = torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([0.0, -1e-30, 0.0])
    leaves = [x.requires_grad_() for x in (chosen, rejected)]
    one = torch.ones(3, dtype=torch.int64)
    weight = torch.tensor([1.0, 0.0, 0.0])
    for _ in range(3):
        loss = rlkern.preference_loss(
            *leaves, kind="orpo", chosen_length=one, rejected_length=one, weight=weight
        ).loss
        assert loss.isfinite() and all(
            x.isfinite().all() for x in torch.autograd.grad(loss, leaves)
        )
        weight = weight.roll(1)


def test_a_negative_length_is_refused():
    logprob, length = pairs()
    length[0][1] = -2
    with pytest.raises(ValueError, match="chosen_length must be at least 0 .*, got -2"):
        lost("ipo", logprob, length)


def slope_of_sigma(x):
    """Returns σ(x)·σ(−x), with all digits."""
    return math.exp(-abs(x)) / (1 + math.exp(-abs(x))) ** 2


@pytest.mark.parametrize("x", (-80.0, -30.0, -17.5, 17.5, 30.0, 80.0))
def test_a_saturated_sigmoid_keeps_the_digits_of_its_gradient(x):
    zero, beta = torch.zeros(1), 0.5
    leaf, slope = torch.tensor([x / beta], requires_grad=True), beta * slope_of_sigma(x)

    def gradient(loss):
        return torch.autograd.grad(loss.loss, leaf)[0].item()

    for desirable, sign in ((True, -1), (False, 1)):
        judged = torch.tensor([desirable])
        found = gradient(rlkern.kto_loss(leaf, zero, judged, torch.tensor(0.0), beta=beta))
        assert found == pytest.approx(sign * slope, rel=1e-5, abs=0)
    for pair, kind, sign in (
        ((leaf, zero), "apo_zero", -1),
        ((zero, leaf), "apo_zero", 1),
        ((zero, leaf), "apo_down", 1),
    ):
        found = gradient(rlkern.preference_loss(*pair, zero, zero, kind=kind, beta=beta))
        assert found == pytest.approx(sign * slope, rel=1e-5, abs=0)
    if abs(x) == 30:  # here both terms of the gradient of exo_pair are far below 1
        found = gradient(rlkern.preference_loss(leaf, *[zero] * 3, kind="exo_pair", beta=beta))
        exact = slope * (x - math.log((1 - 1e-3) / 1e-3))
        assert found == pytest.approx(exact, rel=1e-5, abs=0)


def test_discopop_is_finite_where_one_factor_vanishes_and_the_other_overflows():
    zero, leaf = torch.zeros(1), torch.tensor([-200.0], requires_grad=True)
    out = rlkern.preference_loss(leaf, *[zero] * 3, kind="discopop", beta=1.0)
    out.loss.backward()
    assert out.loss.item() == 200 and leaf.grad.item() == -1


def test_default_weights_of_masked_float64_pairs_have_all_their_digits():
    logprob, length = pairs()
    mask = torch.tensor([True, True, False, True, False, False])  # of three: 1/3 is not exact
    counted = [x[mask].tolist() for x in logprob]
    columns = list(zip(*counted))
    expected = sum(dpo(0.6 * ((c - x) - (r - y))) for c, r, x, y in columns) / 3
    assert lost("sigmoid", logprob, length, mask=mask).loss.item() == pytest.approx(
        expected, rel=1e-12
    )
    first, second = sorted(c - r for c, r, *_ in columns), sorted(x - y for *_, x, y in columns)
    flipped = [(1 - EPS) * dpo(0.6 * (a - b)) + EPS * dpo(0.6 * (b - a))
               for a, b in zip(first, second)]  # fmt: skip
    found = lost("aot", logprob, length, mask=mask).loss.item()
    assert found == pytest.approx(sum(flipped) / 3, rel=1e-12)


def test_the_mean_over_mismatched_answers_has_all_digits_of_float64():
    (logprob, _, ref, _), _ = pairs()
    above = logprob + 3  # the mean is positive
    for mask in (None, torch.tensor([True, True, False, True, False, False])):
        counted = [i for i in range(B) if mask is None or mask[i]]
        expected = sum((above[i] - ref[i]).item() for i in counted) / len(counted)
        found = rlkern.mismatched_kl(above, ref, mask=mask)
        assert found.item() == pytest.approx(expected, rel=1e-12)
