# SPDX-License-Identifier: Apache-2.0
"""Corrections of the sampler's mismatch, by hand and by plain loops."""

import math

import pytest
import torch
from backend_helpers import CHOSEN, served_by

import rlkern
from rlkern.ops.rollout_correction import CORRECTIONS
from rlkern.ops.rollout_rejection import DIVERGENCES
from rlkern.testing.cases import Case, make_batch

NAN = math.nan
KINDS = tuple(CORRECTIONS)
# Ratios w of two answers, the second one token shorter; S = 2 and 1/8, s = 2^(1/3) and 8^(-1/2).
W = torch.tensor([[4.0, 1.0, 0.5], [0.25, 0.5, NAN]], dtype=torch.float64)
MASK = ~W.isnan()
OLD = torch.where(MASK, -1.0, NAN).double()
ROLLOUT = OLD - W.log()
BY_HAND = {
    "truncate": ((0.0, 2.0), [[2.0, 1.0, 0.5], [0.25, 0.5, 0.0]]),
    "mask": ((0.5, 3.0), [[0.0, 1.0, 0.5], [0.0, 0.5, 0.0]]),
    "sequence_truncate": ((0.0, 1.5), [[1.5] * 3, [0.125, 0.125, 0.0]]),
    "sequence_mask": ((0.5, 3.0), [[2.0] * 3, [0.0] * 3]),
    "geometric_mask": ((0.5, 1.5), [[4.0, 1.0, 0.5], [0.0] * 3]),
    # The divergences are 0.201, 0 and 0.280, and 0.276, 0 and 0.368, of the first answer.
    "binary_kl_mask": ((0.0, 0.25), [[4.0, 1.0, 0.0], [0.0] * 3]),
    "total_variation_mask": ((0.0, 0.3), [[4.0, 1.0, 0.0], [0.0] * 3]),
}


def flat(x):
    """Returns the counted rows one after another, and their bounds with an empty answer."""
    return x[MASK], torch.tensor([0, 3, 3, 5])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_the_table_says(kind):
    (low, high), expected = BY_HAND[kind]
    got = rlkern.rollout_correction(OLD, ROLLOUT, MASK, kind=kind, low=low, high=high)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    rows, bounds = flat(OLD)
    packed = rlkern.rollout_correction(
        rows, flat(ROLLOUT)[0], rows == rows, kind=kind, low=low, high=high, cu_seqlens=bounds
    )
    torch.testing.assert_close(packed, expected[MASK], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampler_that_agrees_needs_no_correction_and_nothing_masked_leaks(kind):
    for garbage in (NAN, math.inf, -math.inf):
        old = torch.where(MASK, -2.0, garbage)
        got = rlkern.rollout_correction(old, old.clone(), MASK, kind=kind, low=0.9, high=1.1)
        assert got.equal(MASK.float()) and not got.requires_grad


def test_bounds_belong_to_what_is_kept():
    log_two = torch.full((1, 1), math.log(2.0), dtype=torch.float64)
    exact = log_two.exp().item()
    zero, yes = torch.zeros_like(log_two), log_two > 0
    for kind in ("mask", "sequence_mask", "geometric_mask"):
        for low, high, expected in ((exact, exact, exact), (0.0, 1.9, 0.0), (2.1, 9.0, 0.0)):
            got = rlkern.rollout_correction(log_two, zero, yes, kind=kind, low=low, high=high)
            assert got.item() == expected


def test_bounds_that_are_not_given_are_what_the_docstring_says():
    got = rlkern.rollout_correction(OLD, ROLLOUT, MASK)
    expected = [[2.0, 1.0, 0.5], [0.25, 0.5, 0.0]]  # truncated to [0, 2]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    old, behind = torch.full((3, 2), -2.0), torch.tensor([[0.4], [0.6], [1.1]])
    bad, mask = torch.full((3, 2), -1.0), torch.ones(3, 2, dtype=torch.bool)
    kept = rlkern.off_policy_sequence_mask(old, old + behind, bad, mask)
    assert kept[:, 0].tolist() == [True, False, False]


def divergences(estimator):
    d = (OLD - ROLLOUT).tolist()
    formula = {
        "k1": lambda x: -x,
        "k2": lambda x: x * x / 2,
        "k3": lambda x: math.exp(x) - 1 - x,
    }[estimator]
    return [[formula(x) for x in row if not math.isnan(x)] for row in d]


def within(values, over, low, high):
    """Returns which tokens of an answer are kept, by the definition."""
    one = {"sum": [sum(values)], "mean": [sum(values) / len(values)]}.get(over, values)
    inside = [low <= x <= high for x in one]
    return inside if over == "token" else [all(inside)] * len(values)


@pytest.mark.parametrize("estimator", DIVERGENCES)
@pytest.mark.parametrize("over", ("token", "sum", "mean", "max"))
def test_rejection_keeps_what_lies_within_the_bounds(over, estimator):
    kept = set()
    for low, high in ((-math.inf, 0.5), (-0.4, math.inf), (0.0, 2.0), (-0.7, 1.0)):
        got = rlkern.rollout_rejection(
            OLD, ROLLOUT, MASK, estimator=estimator, over=over, low=low, high=high
        )
        expected = [within(row, over, low, high) for row in divergences(estimator)]
        assert [row[m].tolist() for row, m in zip(got, MASK)] == expected
        assert not got[~MASK].any()
        rows, bounds = flat(OLD)
        packed = rlkern.rollout_rejection(
            rows, flat(ROLLOUT)[0], rows == rows, estimator=estimator, over=over, low=low,
            high=high, cu_seqlens=bounds,
        )  # fmt: skip
        assert packed.equal(got[MASK])
        kept.add(int(got.sum()))
    assert len(kept) > 1  # some bounds hold and others do not


def test_a_token_that_the_trainer_finds_likelier_than_its_sampler_is_the_divergent_one():
    old, rollout = torch.tensor([[-4.0, -1.0]]), torch.tensor([[-1.0, -4.0]])
    every = torch.ones(1, 2, dtype=torch.bool)  # exp(d) − 1 − d is 2.05 and 16.1, d = ∓3
    assert rlkern.rollout_rejection(old, rollout, every, high=5.0).tolist() == [[True, False]]
    kept = rlkern.rollout_rejection(old, rollout, every, estimator="k1", high=0.0)
    assert kept.tolist() == [[False, True]]


@pytest.mark.parametrize("estimator", ("k1", "k3"))
def test_the_mean_estimate_of_tokens_that_the_sampler_drew_is_the_divergence_from_it(estimator):
    mu, old = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]], dtype=torch.float64)
    exact = (mu * (mu / old).log()).sum().item()  # KL(μ‖π_old)
    drawn = mu.log().repeat_interleave(torch.tensor([7, 2, 1]))[None]
    scored = old.log().repeat_interleave(torch.tensor([7, 2, 1]))[None]
    for high, kept in ((exact * (1 + 1e-12), 10), (exact * (1 - 1e-12), 0)):
        options = {"estimator": estimator, "over": "mean", "high": high}
        assert rlkern.rollout_rejection(scored, drawn, drawn < 0, **options).sum() == kept


@pytest.mark.parametrize("backend", CHOSEN)
def test_the_divergence_from_the_old_policy_is_of_tokens_that_the_old_policy_drew(backend):
    old = torch.tensor([[-3.0, -1.0]])
    logprob = old + torch.tensor([[2.0, -2.0]])
    with served_by(backend):
        # exp(d) − 1 − d and −d
        for at, k3, k1 in (([0], 4.389, -2.0), ([1], 1.135, 2.0), ([0, 1], 2.762, 0.0)):
            rows = logprob[:, at], torch.ones(1), old[:, at] < 0
            metrics = rlkern.token_objective(*rows, old_logprob=old[:, at]).metrics
            found = rlkern.metrics_dict(metrics)
            assert found["old_kl"] == pytest.approx(k3, abs=1e-3)
            assert found["old_kl_k1"] == pytest.approx(k1, abs=1e-6)


@pytest.mark.parametrize("backend", CHOSEN)
def test_a_token_without_an_old_policy_has_no_divergence_from_it(backend):
    logprob, old = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, NAN]])
    with served_by(backend):
        # A NaN counts as π itself; the level of a sequence does not change what a token is.
        for level in ("token", "sequence"):
            rows = logprob, torch.ones(1), torch.ones(1, 2) > 0
            out = rlkern.token_objective(*rows, old_logprob=old, level=level)
            assert rlkern.metrics_dict(out.metrics)["old_kl_k1"] == pytest.approx(-0.25)


def test_bad_answers_left_behind_are_masked_and_good_ones_stay():
    old, rollout = torch.full((4, 2), -2.0), torch.full((4, 2), -1.0)
    rollout[3] = -1.6  # behind by 0.4 on average
    advantage = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-1.0, NAN], [-1.0, -1.0]])
    mask = advantage == advantage
    got = rlkern.off_policy_sequence_mask(old, rollout, advantage, mask, threshold=0.5)
    assert got.tolist() == [[True, True], [False, False], [False, False], [True, True]]
    bounds = torch.tensor([0, 2, 4, 6, 8])
    rows = [x.flatten() for x in (old, rollout, advantage, mask)]
    packed = rlkern.off_policy_sequence_mask(*rows, threshold=0.5, cu_seqlens=bounds)
    assert packed.equal(got.flatten())


def test_a_normalized_correction_has_mean_one_over_the_counted_tokens():
    correction = torch.tensor([[1.0, 3.0, NAN]])
    got = rlkern.batch_normalized(correction, torch.tensor([[True, True, False]]))
    assert got.tolist() == [[0.5, 1.5, 0.0]]
    nothing = rlkern.batch_normalized(correction, torch.zeros(1, 3, dtype=torch.bool))
    assert nothing.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_each_token_is_multiplied_by_the_bounded_ratio(kind, backend):
    """A token's loss, seen by itself: all the weight is on it."""
    case = Case("alone", B=3, T=3, V=11, mask="full")
    batch = make_batch(case, torch.float32)
    mask, old = batch.mask, batch.old_logprob
    rollout = old - torch.tensor([[0.1, 0.1, 0.1], [1.0, 1.0, 1.0], [0.2, -0.1, 0.4]])
    bounds = {"low": 0.8, "high": 1.5}
    factor = rlkern.rollout_correction(old, rollout, mask, kind=kind, **bounds)

    def losses(**options):
        """Returns the loss and the gradient's norm with all the weight on each token in turn."""
        found = []
        for at in range(3):  # a token of each sequence
            leaf, weight = batch.logits.clone().requires_grad_(), torch.zeros(mask.shape)
            weight[at, at] = 1.0
            out = rlkern.policy_loss(
                leaf, batch.token, batch.advantage, mask, old_logprob=old, weight=weight,
                algorithm="ppo", **options,
            )  # fmt: skip
            out.loss.backward()
            found.append((out.loss.detach(), leaf.grad.norm()))
        return torch.tensor(found)

    with served_by(backend):
        plain, corrected = losses(), losses(correction=factor)
    assert (plain[:, 0].abs() > 1e-3).all() and plain[:, 1].any()  # some are clipped
    expected = factor.diagonal()
    torch.testing.assert_close(corrected, plain * expected[:, None], rtol=1e-5, atol=0)
    assert expected.unique().numel() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_correction_multiplies_what_the_loss_makes_of_each_token(kind):
    batch = make_batch(Case("correction", B=3, T=4, V=11), torch.float64)
    batch = batch.to("cpu", torch.float64)
    rollout = batch.old_logprob + 0.2 * torch.sin(40 * batch.ref_logprob)
    factor = rlkern.rollout_correction(batch.old_logprob, rollout, batch.mask, kind=kind, high=1.5)
    weight = rlkern.aggregate.token_weight(batch.mask).double()

    def gradient(**options):
        leaf = batch.logits.clone().requires_grad_()
        out = rlkern.policy_loss(
            leaf, batch.token, batch.advantage, batch.mask, old_logprob=batch.old_logprob,
            algorithm="ppo", **options,
        )  # fmt: skip
        out.loss.backward()
        return leaf.grad

    got = gradient(correction=factor, weight=weight)
    torch.testing.assert_close(got, gradient(weight=weight * factor), rtol=1e-10, atol=1e-14)
    assert factor[batch.mask].unique().numel() > 1


@pytest.mark.parametrize(
    "function,options",
    ((rlkern.rollout_correction, {"kind": "none"}), (rlkern.rollout_rejection, {"over": "all"}),
     (rlkern.rollout_rejection, {"estimator": "k4"})),
)  # fmt: skip
def test_an_unknown_choice_is_refused_with_those_there_are(function, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{function.__name__}: {name} must be one of .*{value}"):
        function(OLD, ROLLOUT, MASK, **options)


@pytest.mark.parametrize("name", ("old_logprob", "rollout_logprob"))
def test_bad_log_probabilities_are_refused_by_name(name):
    good = {"old_logprob": OLD, "rollout_logprob": ROLLOUT, "mask": MASK}
    for value, error, sentence in (
        (OLD.long(), TypeError, "must be float16 or bfloat16 or float32 or float64, got"),
        (OLD * math.inf, ValueError, "must be finite where mask is True, got NaN or inf"),
        (OLD[:1], ValueError, r"must be \(\d, 3\) on cpu, got"),
    ):
        with pytest.raises(error, match=sentence):
            rlkern.rollout_correction(**{**good, name: value})
    with pytest.raises(ValueError, match=r"must be \(B, T\), or \(N,\) with cu_seqlens, got"):
        rlkern.rollout_correction(*(x[0] for x in good.values()))
