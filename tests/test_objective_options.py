# SPDX-License-Identifier: Apache-2.0
"""Options of the token objective against what other trainers compute, written out by hand.

Nothing of the library's formulas is used here, and everything is float64.
"""

import math

import pytest
import torch
from drawn_helpers import Drawn, S, T, assert_same

import rlkern
from rlkern.backends import _load
from rlkern.backends.eager.kl import KL_ESTIMATORS

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def mean_over_answers(x, drawn):
    return ((x * drawn.mask).sum(-1) / drawn.length)[:, None].expand_as(x)


def verl_kl(p, ref):
    d = (ref - p).clamp(min=-20, max=20)
    return (d.exp() - d - 1).clamp(min=-10, max=10)


def test_kl_max_ten_is_the_low_var_kl_of_verl(backend):
    drawn, none = Drawn(), torch.zeros(S, T).double()
    clamped = {"kl_coef": 0.3, "kl_estimator": "k3", "kl_max": 10}
    got = drawn.loss("reinforce", none, **clamped)
    assert_same(got, drawn.by_hand(lambda p, h: 0.3 * verl_kl(p, drawn.ref)))
    kl = verl_kl(drawn.logprob, drawn.ref)[drawn.mask]
    assert kl.max() == 10 and abs(got[3]["kl"] - kl.mean()) < 1e-12  # what the loss saw

    def through(p, h):
        square = 0.5 * (p - drawn.ref).square()
        return 0.3 * (square - square.detach() + verl_kl(p, drawn.ref).detach())

    got = drawn.loss("reinforce", none, **{**clamped, "kl_estimator": "k3+"})
    assert_same(got, drawn.by_hand(through))


def test_log_ratios_within_twenty_are_those_of_verls_dual_clip(backend):
    drawn = Drawn()

    def verl(p, h):
        ratio = (p - drawn.old).clamp(-20, 20).exp()
        a = drawn.advantage
        clipped = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2))
        return torch.where(a < 0, torch.minimum(clipped, -3 * a), clipped)

    within = {"log_ratio_min": -20, "log_ratio_max": 20}
    assert ((drawn.logprob - drawn.old)[drawn.mask].abs() > 20).any()
    assert_same(drawn.loss("dual_clip_ppo", **within), drawn.by_hand(verl))


def test_log_ratio_max_ten_at_the_sequence_is_verls_gspo(backend):
    drawn = Drawn()

    def ratio(p):
        mean = mean_over_answers((p - drawn.old).detach(), drawn)
        return (p - p.detach() + mean).clamp(max=10).exp()

    def verl(p, h):
        a, r = drawn.advantage, ratio(p)
        return torch.maximum(-a * r, -a * r.clamp(1 - 3e-4, 1 + 4e-4))

    got = drawn.loss("gspo_token", log_ratio_max=10)
    assert_same(got, drawn.by_hand(verl))
    counted = ratio(drawn.logprob)[drawn.mask]
    assert got[3]["ratio/max"] == counted.max() == math.exp(10)
    assert abs(got[3]["ratio/mean"] / counted.mean() - 1) < 1e-12


@pytest.mark.parametrize("name", ("ppo", "gspo", "gspo_token", "rloo", "sapo", "dro"))
def test_beyond_a_clamp_there_is_no_gradient_and_on_it_there_is(backend, name):
    one = torch.ones(1, 1).double()
    options = {"mask": one > 0, "weight": one, "algorithm": name}

    def slope(log_ratio, **clamps):
        logprob = (-one).requires_grad_()
        old = logprob.detach() - log_ratio
        options["old_logprob"] = old
        advantage = -one if log_ratio > 0 else one  # no clip of the gate holds it
        out = rlkern.token_objective(logprob, advantage, **options, **clamps)
        return torch.autograd.grad(out.loss, logprob)[0].item()

    constant = 1.0 if name == "dro" else 0.0  # of A·log π, which is no ratio
    for log_ratio, bound in ((0.5, "log_ratio_max"), (-0.5, "log_ratio_min")):
        beyond = slope(log_ratio, **{bound: 0.99 * log_ratio})
        assert abs(beyond) == constant
        assert slope(log_ratio, **{bound: log_ratio}) == slope(log_ratio) != beyond


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
def test_a_clamped_kl_has_no_gradient_beyond_even_where_the_estimator_overflows(backend, kl):
    logprob = torch.tensor([[-200.0, -3.0, -1.0]]).requires_grad_()
    ref, mask = torch.tensor([[-1.0, -1.0, -200.0]]), torch.ones(1, 3) > 0
    out = rlkern.token_objective(
        logprob, torch.zeros(1, 3), mask, ref_logprob=ref, weight=torch.ones(1, 3),
        algorithm="reinforce", kl_coef=1.0, kl_estimator=kl, kl_max=1e-3,
    )  # fmt: skip
    (slope,) = torch.autograd.grad(out.loss, logprob)
    d = (logprob - ref).detach()
    assert torch.equal(slope, d if kl.endswith("+") else torch.zeros(1, 3))
    signed = kl in ("k1", "k1+", "importance_k1")
    assert abs(out.loss.item() - (-1e-3 if signed else 3e-3)) < 1e-9


SEQUENCE_LOSS = {
    "dual_clip_ppo": lambda r, p, a: torch.where(
        a < 0, torch.minimum(clipped(r, a), -3 * a), clipped(r, a)
    ),
    "cispo": lambda r, p, a: -r.clamp(0, 5).detach() * a * p,
    "sapo": lambda r, p, a: -4 * a / tau(a) * torch.sigmoid(tau(a) * (r - 1)),
    "grpo": lambda r, p, a: clipped(r, a),
}


def clipped(r, a):
    return torch.maximum(-a * r, -a * r.clamp(0.8, 1.2))


def tau(a):
    return torch.where(a > 0, torch.ones_like(a), 1.05)


@pytest.mark.parametrize("algorithm", SEQUENCE_LOSS)
def test_a_level_gives_any_gate_with_a_ratio_that_of_the_sequence(backend, algorithm):
    drawn = Drawn()
    drawn.old = drawn.logprob - 0.1 * (drawn.logprob - drawn.old)

    def by_hand(p, h):
        ratio = mean_over_answers(p - drawn.old, drawn).exp()
        return SEQUENCE_LOSS[algorithm](ratio, p, drawn.advantage)

    got = drawn.loss(algorithm, level="sequence")
    assert_same(got, drawn.by_hand(by_hand))
    product = ((drawn.logprob - drawn.old) * drawn.mask).sum(-1).exp()
    assert abs(drawn.loss(algorithm, level="product")[3]["ratio/max"] / product.max() - 1) < 1e-12


def test_level_k3_is_trls_bias_corrected_kl_at_the_level_of_sequences(backend):
    drawn = Drawn()
    drawn.old = drawn.logprob - 0.1 * (drawn.logprob - drawn.old)
    drawn.ref = drawn.logprob - 0.05 * (drawn.logprob - drawn.ref)

    def trl(p, h):
        ratio, a = mean_over_answers(p - drawn.old, drawn).exp(), drawn.advantage
        kl = (drawn.ref - p).exp() - (drawn.ref - p) - 1
        return clipped(ratio, a) + 0.3 * kl * ratio

    terms = {"kl_coef": 0.3, "kl_estimator": "level_k3"}
    got = drawn.loss("grpo", level="sequence", **terms)
    assert_same(got, drawn.by_hand(trl))
    token = drawn.loss("grpo", **terms)
    assert_same(token, drawn.loss("grpo", **{**terms, "kl_estimator": "importance_k3"}))
    # A correction is of the gate alone: the ratio's slope through the KL is not corrected.
    none = drawn.loss("grpo", level="sequence", correction=torch.zeros(S, T), **terms)
    alone = drawn.loss("grpo", 0 * drawn.advantage, level="sequence", **terms)
    assert_same(none[:3], alone[:3])


@pytest.mark.parametrize(
    ("algorithm", "level", "sentence"),
    (
        ("reinforce", "sequence", "reinforce: level must be token, as its gate reinforce looks at"),
        ("dppo", "product", "dppo: level must be token, as its gate dppo_tv looks at no ratio"),
        ("grpo", "clipped_sequence", "grpo: level must be token, as clipped_sequence takes the"),
        ("gmpo", "token", "gmpo: level must be clipped_sequence, as clipped_sequence takes the"),
        ("grpo", "answer", "grpo: level must be one of token, sequence, .*, got 'answer'"),
        ("grpo", 2, "grpo: level must be one of token, sequence, .*, got 2"),
    ),
)
def test_a_level_that_means_nothing_to_a_gate_is_refused(algorithm, level, sentence):
    with pytest.raises(ValueError, match=sentence):
        Drawn().loss(algorithm, level=level)


def test_flat_rows_need_bounds_where_the_level_is_a_sequences():
    row = torch.zeros(4)
    with pytest.raises(ValueError, match=r"grpo compares whole sequences, so rows must be"):
        rlkern.token_objective(row, row, row == 0, weight=row + 1, level="sequence")


def test_a_penalty_is_that_of_kl_cov(backend):
    drawn = Drawn()
    chosen = torch.rand(S, T, generator=torch.Generator().manual_seed(1)) > 0.7

    def verl(p, h):
        d = p - drawn.old
        plain = -drawn.advantage * d.exp()
        return torch.where(chosen, plain + 0.7 * d.abs(), plain)

    free = {"clip_low": 1.0, "clip_high": 1e9, "penalty": 0.7 * chosen.double()}
    assert_same(drawn.loss("ppo", **free), drawn.by_hand(verl))
    # Neither the clamp nor the correction is of the penalty.
    half = torch.full((S, T), 0.5).double()
    held = drawn.loss("ppo", **free, correction=half, log_ratio_min=0, log_ratio_max=0)

    def by_hand(p, h):
        return torch.where(chosen, 0.7 * (p - drawn.old).abs(), 0.0) - 0.5 * drawn.advantage

    assert_same(held, drawn.by_hand(by_hand))


def test_an_entropy_weight_gives_trls_bonus_whatever_the_weights_of_the_loss(backend):
    drawn = Drawn()
    token_mean = drawn.mask.double() / drawn.mask.sum()

    def trl(p, h):
        loss = (drawn.weight * clipped((p - drawn.old).exp(), drawn.advantage))[drawn.mask].sum()
        return loss - 0.2 * h[drawn.mask].mean()

    got = drawn.loss("grpo", entropy_coef=0.2, entropy_weight=token_mean)
    assert_same(got, drawn.by_hand(trl))


def test_an_nll_weight_adds_maximum_likelihood(backend):
    drawn, good = Drawn(), torch.arange(S)[:, None] % 2 == 0

    def vapo(p, h):
        loss = (drawn.weight * clipped((p - drawn.old).exp(), drawn.advantage))[drawn.mask].sum()
        return loss - 0.1 * p[good & drawn.mask].mean()

    counted = good & drawn.mask
    got = drawn.loss("ppo", nll_weight=0.1 * counted.double() / counted.sum())
    assert_same(got, drawn.by_hand(vapo))


NEW_ROWS = ("penalty", "entropy_weight", "nll_weight")


@pytest.mark.parametrize("name", NEW_ROWS)
@pytest.mark.parametrize("garbage", (math.nan, math.inf, -math.inf))
def test_garbage_in_a_row_leaks_from_no_token_that_does_not_count(backend, name, garbage):
    drawn = Drawn()
    row = torch.where(drawn.mask, drawn.weight, garbage)
    options = {"entropy_coef": 0.1, "kl_coef": 0.1}
    clean = drawn.loss("gspo", **options, **{name: drawn.weight})
    assert_same(drawn.loss("gspo", **options, **{name: row}), clean)
    assert all(x.isfinite().all() for x in clean[:3])


@pytest.mark.parametrize("name", ("entropy_weight", "nll_weight"))
def test_a_weight_of_a_token_that_is_not_read_is_refused(name):
    drawn = Drawn()
    with pytest.raises(ValueError, match=f"{name} must be 0 where weight is 0, .*, got 2.0"):
        drawn.loss("grpo", **{name: torch.where(drawn.mask, 1.0, 2.0)})
    drawn.weight[0] = 0
    with pytest.raises(ValueError, match=f"{name} must be 0 where weight is 0, .*, got 1.0"):
        drawn.loss("grpo", **{name: drawn.mask.float()})


def test_a_clamped_ratio_and_no_penalty_are_finite_where_the_old_policy_left_nothing(backend):
    one = torch.ones(1, 2)
    logprob, old = (-one).requires_grad_(), torch.tensor([[-200.0, -1.0]])
    out = rlkern.token_objective(
        logprob, -one, one > 0, old_logprob=old, penalty=one * torch.tensor([0.0, 1.0]),
        nll_weight=0 * one, algorithm="gspo", level="token", log_ratio_max=20, weight=one,
    )  # fmt: skip
    (slope,) = torch.autograd.grad(out.loss, logprob)
    assert out.loss.isfinite() and slope.tolist() == [[0.0, 1.0]]


def test_no_clamp_is_on_unless_it_is_asked_for():
    logprob, old, ref = (torch.full((1, 1), x, dtype=torch.float64) for x in (-1.0, -26.0, -16.0))
    loss = rlkern.token_objective(
        logprob, torch.ones(1, dtype=torch.float64), logprob < 0, old_logprob=old, ref_logprob=ref,
        algorithm="on_policy_distillation", kl_coef=1.0, kl_estimator="k1",
    ).loss  # fmt: skip
    assert loss.item() == pytest.approx(-math.exp(25) + 15, rel=1e-12)


def test_the_default_weights_of_float64_tokens_have_all_their_digits():
    logprob = torch.full((1, 3), -1.0, dtype=torch.float64)
    loss = rlkern.token_objective(logprob, torch.ones(1), logprob < 0, algorithm="dapo").loss
    assert loss.item() == pytest.approx(-1.0, rel=1e-12)  # of three tokens: 1/3 is not exact
