# SPDX-License-Identifier: Apache-2.0
"""The objective's formulas: their derivatives, and the identities between them."""

import math

import pytest
import torch
from objective_helpers import (
    DIFFERENCES,
    EDGES,
    EVERY_GATE,
    EVERY_KL,
    EVERY_LEVEL,
    HIGH,
    LOW,
    STOPPED,
    grid,
    objective_of,
    sequences,
)

import rlkern
from rlkern.aggregate import token_weight
from rlkern.backends import _load
from rlkern.backends.eager.gates import GATES
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.backends.eager.levels import LEVELS, Sequences
from rlkern.testing.cases import Case, make_batch

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
RAW = [_load(name)[0].token_objective for name in BACKENDS]


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


@EVERY_GATE
def test_the_derivatives_of_a_gate_are_those_of_its_values(gate):
    logprob, _, rows = grid(torch.float64)
    log_ratio = logprob - rows.old_logprob
    near = log_ratio.abs() < 3
    for edge in (*EDGES, math.log(3)):
        near &= (log_ratio - edge).abs() > 1e-5
    leaves = [x[near].requires_grad_() for x in (logprob, log_ratio)]
    advantage, coefficients = rows.advantage[near], objective_of(gate).gate_coef

    def loss(*given):
        return GATES[gate](*given, advantage, *coefficients).loss

    if gate not in STOPPED:
        assert torch.autograd.gradcheck(loss, leaves)
        return
    value = loss(*leaves)  # a constant times log π
    slopes = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
    counted = leaves[0] != 0
    torch.testing.assert_close(slopes[0][counted], (value / leaves[0])[counted])
    assert slopes[1].eq(0).all() and value[counted & (advantage != 0)].ne(0).any()


@EVERY_LEVEL
def test_the_derivatives_of_a_level_are_those_of_its_values(level):
    logprob, _, rows = sequences(torch.float64)
    d = (logprob - rows.old_logprob).clamp(-1.7, 1.7).requires_grad_()
    together, counted = Sequences(d.shape, None), rows.weight != 0

    def log_ratio(d):
        kept = torch.where(counted, d, 0.0)
        return LEVELS[level](kept, rows.advantage, counted, together, LOW, HIGH).log_ratio

    if level != "sequence_token":
        assert torch.autograd.gradcheck(log_ratio, d)
        return
    (slope,) = torch.autograd.grad(log_ratio(d).sum(), d)
    assert slope.equal(counted.double())  # its own, though the value is the sequence's


@EVERY_KL
def test_the_derivatives_of_a_kl_estimator_are_those_of_its_values(kl):
    d = torch.tensor([x for x in DIFFERENCES if 1e-5 < abs(x) < 3], dtype=torch.float64)
    ref, old = torch.full_like(d, -1.5), torch.full_like(d, -1.4)
    logprob = (ref + d).requires_grad_()

    def value(logprob):
        return KL_ESTIMATORS[kl](logprob, ref, logprob - old)

    if not kl.endswith("+"):
        assert torch.autograd.gradcheck(value, logprob)
        return
    (slope,) = torch.autograd.grad(value(logprob).sum(), logprob)
    torch.testing.assert_close(slope, logprob.detach() - ref)  # that of k2
    torch.testing.assert_close(value(logprob), KL_ESTIMATORS[kl[:-1]](logprob, ref, None))


def spoiled(x):
    x = x.clone()
    x[0, 0] = torch.nan
    return x


@EVERY_LEVEL
@EVERY_GATE
def test_a_nan_shows_in_the_loss_and_in_its_own_sequence_alone(gate, level):
    logprob, entropy, rows = sequences(torch.float64, S=8)
    rows = rows._replace(advantage=-rows.advantage.abs())  # topr looks at the ratio of the bad
    ways = [(spoiled(logprob), rows), (logprob, rows._replace(advantage=spoiled(rows.advantage)))]
    for scores, given in ways:
        for run in RAW:
            loss, _, slope, _ = run(scores, entropy, given, None, objective_of(gate, level))
            assert loss.isnan() and slope[0].isnan().any() and slope[1:].isfinite().all()


def token_objective(batch, **options):
    """Returns (loss, metrics, gradient) near the old policy."""
    base = batch.old_logprob if batch.old_logprob is not None else batch.ref_logprob
    leaf = base + 0.3 * torch.sin(100 * base)
    leaf = leaf.detach().requires_grad_()
    given = {**batch.rows, **options}
    advantage, mask = given.pop("advantage", batch.advantage), given.pop("mask", batch.mask)
    out = rlkern.token_objective(leaf, advantage, mask, **given)
    out.loss.backward()
    return out.loss.detach(), out.metrics, leaf.grad


def batch_of(B=3, T=4, **options):
    case = Case("objective", B=B, T=T, V=7, **options)
    return make_batch(case, torch.float64).to("cpu", torch.float64)


def assert_same(got, expected, rtol=1e-12, atol=1e-14):
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ("gspo", "gspo_token"))
def test_gspo_of_sequences_of_one_token_is_ppo(backend, name):
    batch, clip = batch_of(B=5, T=1, mask="full"), {"clip_low": 0.2, "clip_high": 0.2}
    assert_same(token_objective(batch, algorithm=name, **clip),
                token_objective(batch, algorithm="ppo", **clip))  # fmt: skip


def test_a_sequence_that_shares_one_log_ratio_has_the_gspo_ratio_of_each_token(backend):
    batch, clip = batch_of(sequence_advantage=True), {"clip_low": 0.2, "clip_high": 0.2}
    batch.old_logprob = None
    got = [token_objective(batch, algorithm=name, **clip)[:2] for name in ("gspo", "grpo")]
    assert_same(*got)


def test_gspo_token_has_the_value_of_gspo_and_with_one_advantage_its_gradient(backend):
    clip = {"clip_low": 0.3, "clip_high": 0.3}
    batches = batch_of(), batch_of(sequence_advantage=True)
    pairs = [[token_objective(batch, algorithm=name, **clip) for name in ("gspo", "gspo_token")]
             for batch in batches]  # fmt: skip
    assert_same(pairs[0][0][:2], pairs[0][1][:2])
    assert_same(*pairs[1])
    assert not torch.allclose(pairs[0][0][2], pairs[0][1][2])


def test_luspo_is_gspo_summed_over_tokens(backend):
    batch = batch_of()
    weight = token_weight(batch.mask, "sequence_token_sum")
    clip = {"clip_low": 0.2, "clip_high": 0.2}
    declared = rlkern.algorithms()["luspo"]
    gspo = token_objective(batch, algorithm="gspo", weight=weight, **clip)
    assert (declared.gate, declared.level) == ("ppo_clip", "sequence")
    assert_same(token_objective(batch, algorithm="luspo", weight=weight, **clip), gspo)


def test_gmpo_with_wide_clips_is_the_geometric_mean_without_a_clip(backend):
    batch = batch_of(sequence_advantage=True)
    weight = token_weight(batch.mask)
    wide = token_objective(batch, algorithm="gmpo", clip_low=50.0, clip_high=50.0, weight=weight)
    free = token_objective(batch, algorithm="gspo", clip_low=1.0, clip_high=1e9, weight=weight)
    assert_same(wide, free)


def test_a_correction_of_ones_is_none(backend):
    batch = batch_of()
    for name in ("grpo", "gspo"):
        plain = token_objective(batch, algorithm=name)
        ones = token_objective(batch, algorithm=name, correction=torch.ones(3, 4).double())
        assert_same(ones, plain, rtol=0, atol=0)


def test_a_correction_scales_the_loss_of_the_gate_and_neither_kl_nor_entropy(backend):
    batch, terms = batch_of(), {"kl_coef": 0.3, "kl_estimator": "k2"}
    half = torch.full((3, 4), 0.5).double()
    both = token_objective(batch, correction=half, **terms)
    gate = token_objective(batch, kl_coef=0.0)
    kl = token_objective(batch, advantage=torch.zeros(3, 4).double(), **terms)
    assert_same((both[0], both[2]), (0.5 * gate[0] + kl[0], 0.5 * gate[2] + kl[2]), rtol=1e-9)
    assert rlkern.metrics_dict(both[1])["correction"] == 0.5


def test_a_dual_clip_beyond_the_upper_clip_is_the_two_sided_clip_of_the_ratio(backend):
    # INTELLECT-2: min(min(r, δ)·A, clip(r)·A), a bound on r whatever the sign of A.
    log_ratio = torch.linspace(-3, 3, 60).double()
    for delta in (1.5, 4.0):
        for A in (-1.3, 0.0, 0.7):
            leaf = log_ratio.clone().requires_grad_()
            ratio, advantage = leaf.exp(), torch.full_like(log_ratio, A)
            plain = -torch.minimum(ratio.clamp(max=delta) * A, ratio.clamp(0.8, 1.28) * A)
            plain.sum().backward()
            twin = log_ratio.clone().requires_grad_()
            loss = GATES["dual_clip"](twin, twin, advantage, 0.2, 0.28, delta).loss
            loss.sum().backward()
            assert_same((loss, twin.grad), (plain, leaf.grad))


@pytest.mark.parametrize("kl", ("k1", "k3"))
def test_an_importance_weighted_estimator_on_policy_has_the_value_of_the_plain_one(backend, kl):
    batch = batch_of(off_policy=False)
    values = [token_objective(batch, kl_coef=0.4, kl_estimator=name)
              for name in (kl, f"importance_{kl}")]  # fmt: skip
    assert_same(values[0][:1], values[1][:1])
    assert not torch.allclose(values[0][2], values[1][2])  # which has the score-function term


@pytest.mark.parametrize("kl", ("k1", "k3"))
def test_a_straight_through_estimator_has_its_value_and_the_gradient_of_k2(backend, kl):
    batch = batch_of()
    value, through, k2 = (token_objective(batch, kl_coef=0.4, kl_estimator=name)
                          for name in (kl, f"{kl}+", "k2"))  # fmt: skip
    assert_same((value[0], k2[2]), (through[0], through[2]))


def test_cispo_with_wide_clips_has_the_gradient_of_the_importance_weighted_surrogate(backend):
    batch = batch_of()
    wide = {"clip_low": 1.0, "clip_high": 1e6}
    weight = token_weight(batch.mask)
    cispo = token_objective(batch, algorithm="cispo", weight=weight, **wide)
    ppo = token_objective(batch, algorithm="ppo", weight=weight, **wide)
    assert_same((cispo[2],), (ppo[2],), rtol=1e-9)


@pytest.mark.parametrize("name", ("grpo", "gspo", "gmpo", "vespo"))
def test_a_sequence_without_counted_tokens_changes_nothing(backend, name):
    batch = batch_of(B=3, T=4)
    whole, empty = batch.mask.clone(), batch.mask.clone()
    empty[1] = False
    weight = token_weight(whole)
    weight[1] = 0
    loss, metrics, gradient = token_objective(batch, algorithm=name, mask=empty, weight=weight)
    assert gradient[1].eq(0).all() and loss.isfinite() and metrics.isfinite().all()
    without = torch.tensor([0, 2])
    rest = batch_of(B=3, T=4)
    rows = {n: x[without] for n, x in vars(rest).items() if isinstance(x, torch.Tensor)}
    expected = token_objective(
        type(rest)(**{**vars(rest), **rows}), algorithm=name, mask=whole[without],
        weight=weight[without],
    )  # fmt: skip
    assert_same((loss, metrics), expected[:2])


def test_the_gradient_of_a_sequence_ratio_is_shared_by_its_counted_tokens_alone(backend):
    batch = batch_of(sequence_advantage=True)
    _, _, gradient = token_objective(batch, algorithm="gspo", clip_low=1.0, clip_high=1e6)
    for row, mask in zip(gradient, batch.mask):
        assert row[mask].eq(row[0]).all() and row[0] != 0 and row[~mask].eq(0).all()
