# SPDX-License-Identifier: Apache-2.0
"""Options of the corrections: divergences of two outcomes, a lower bound, means over answers."""

import math

import pytest
import torch
from test_correction import MASK, NAN, OLD, ROLLOUT, W, flat, within

import rlkern
from rlkern.ops._mismatch import TWO_OUTCOMES, binary_kl, checked

OUTCOMES = {
    "binary_kl": lambda mu, pi: mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi)),
    "total_variation": lambda mu, pi: abs(mu - pi),
}


@pytest.mark.parametrize("over", ("token", "sum", "mean", "max"))
@pytest.mark.parametrize("estimator", OUTCOMES)
def test_rejection_by_two_outcomes_is_the_divergence_written_out(estimator, over):
    assert set(OUTCOMES) == set(TWO_OUTCOMES)
    mu, pi = [[0.5, 0.3, 0.9], [0.2, 0.6]], [[0.45, 0.5, 0.2], [0.25, 0.6]]
    rows = [[[*a, *[NAN] * (3 - len(a))] for a in x] for x in (pi, mu)]
    old, rollout = (torch.tensor(x, dtype=torch.float64).log() for x in rows)
    values = [[OUTCOMES[estimator](*pair) for pair in zip(*x)] for x in zip(mu, pi)]
    exact = TWO_OUTCOMES[estimator](checked("test", old, rollout, MASK, None))
    got = [row[m].tolist() for row, m in zip(exact, MASK)]
    assert got == [pytest.approx(x, rel=1e-12, abs=1e-15) for x in values]
    kept = set()
    for high in (0.01, 0.1, 0.3, 2.0):
        got = rlkern.rollout_rejection(
            old, rollout, MASK, estimator=estimator, over=over, high=high
        )
        expected = [within(x, over, -math.inf, high) for x in values]
        assert [row[m].tolist() for row, m in zip(got, MASK)] == expected
        kept.add(int(got.sum()))
    assert len(kept) > 1


def test_certain_tokens_have_no_divergence_and_an_impossible_rest_an_infinite_one():
    zero, half, yes = torch.zeros(1, 1), torch.full((1, 1), 0.5).log(), torch.ones(1, 1).bool()
    for old, rollout, expected in ((zero, zero, 0.0), (zero, half, math.inf)):
        got = binary_kl(checked("test", old, rollout, yes, None))
        assert got.item() == expected
    got = binary_kl(checked("test", half, zero, yes, None))
    assert got.item() == pytest.approx(math.log(2), rel=1e-6)


def test_a_truncated_ratio_can_have_a_lower_bound():
    got = rlkern.rollout_correction(OLD, ROLLOUT, MASK, low=0.5, high=3.0)
    expected = torch.tensor([[3.0, 1.0, 0.5], [0.5, 0.5, 0.0]]).double()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_a_correction_can_be_normalized_by_answers_instead_of_tokens():
    first, second = sum((4.0, 1.0, 0.5)) / 3, sum((0.25, 0.5)) / 2
    expected = torch.where(MASK, W, 0.0) / ((first + second) / 2)
    got = rlkern.batch_normalized(W, MASK, over="sequence")
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    rows, bounds = flat(W)  # with an answer that has no token
    packed = rlkern.batch_normalized(rows, rows == rows, over="sequence", cu_seqlens=bounds)
    torch.testing.assert_close(packed, expected[MASK], rtol=1e-12, atol=0)
    for over in ("token", "sequence"):
        for mask in (MASK, torch.zeros_like(MASK)):
            assert not rlkern.batch_normalized(torch.zeros_like(W), mask, over=over).any()
    with pytest.raises(ValueError, match="batch_normalized: over must be token or sequence, got"):
        rlkern.batch_normalized(W, MASK, over="answer")
    with pytest.raises(ValueError, match=r"correction must be \(B, T\), got \(3,\)"):
        rlkern.batch_normalized(W[0], MASK[0], over="sequence")
