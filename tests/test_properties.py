# SPDX-License-Identifier: Apache-2.0
"""What holds for any batch: drawn by hypothesis, on every backend that serves the CPU."""

import math

import pytest
import torch
from batch_helpers import (
    BACKENDS,
    batches,
    each,
    loss_and_gradient,
    same_bits,
    scores_and_gradient,
    weight_of,
    with_garbage,
)
from hypothesis import given
from hypothesis import strategies as st

import rlkern
from rlkern.testing.cases import Batch, Case, make_batch


@pytest.fixture(scope="module", autouse=True)
def fresh_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


EVERY = pytest.mark.parametrize("backend", BACKENDS)


@EVERY
@pytest.mark.parametrize("name", ("grpo", "gspo", "gmpo"))
@given(batches(), st.sampled_from((math.nan, math.inf, -math.inf, -100.0)))
def test_what_is_masked_never_leaks(backend, name, batch, garbage):
    with rlkern.use_backend(backend):
        clean = *loss_and_gradient(batch, algorithm=name), *scores_and_gradient(batch)
        dirty_batch = with_garbage(batch, garbage)
        weight = weight_of(batch).masked_fill(~batch.mask, garbage)
        dirty_loss = loss_and_gradient(dirty_batch, weight, algorithm=name)
        dirty = *dirty_loss, *scores_and_gradient(dirty_batch)
    assert same_bits(clean, dirty)
    assert clean[2][~batch.mask].eq(0).all() and clean[7][~batch.mask].eq(0).all()
    assert all(x.isfinite().all() for x in (clean[0], clean[2], clean[7]))


@EVERY
@given(batches(dtypes=(torch.float64,), softcaps=(None,)), st.floats(-1e3, 1e3))
def test_a_common_offset_of_the_logits_changes_only_the_lse(backend, batch, offset):
    shifted = Batch(**{**vars(batch), "logits": batch.logits + offset})
    with rlkern.use_backend(backend):
        for got, expected in zip(loss_and_gradient(shifted), loss_and_gradient(batch)):
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
        moved = torch.where(batch.mask, offset / batch.temperature.double(), 0.0)
        got, expected = scores_and_gradient(shifted), scores_and_gradient(batch)
    torch.testing.assert_close(got[2], expected[2] + moved, rtol=1e-9, atol=1e-7)


@EVERY
@given(batches())
def test_tokens_of_32_and_64_bits_mean_the_same(backend, batch):
    with rlkern.use_backend(backend):
        short = loss_and_gradient(batch, token=batch.token.int())
        assert same_bits(short, loss_and_gradient(batch))


@EVERY
@given(batches())
def test_log_probabilities_and_entropies_lie_in_their_range(backend, batch):
    with rlkern.use_backend(backend):
        logprob, entropy, _, sum_pi_squared, _ = scores_and_gradient(batch)
    V = batch.logits.shape[-1]
    few_ulp = 8 * torch.finfo(torch.float32).eps
    assert logprob.le(0).all() and sum_pi_squared.le(1 + few_ulp).all()
    assert sum_pi_squared[batch.mask].ge((1 - few_ulp) / V).all()
    assert entropy.ge(-few_ulp).all() and entropy.le(math.log(V) * (1 + few_ulp) + few_ulp).all()


@EVERY
@pytest.mark.parametrize("kl_estimator", ("k2", "k3"))
@given(st.lists(st.floats(-60, 0, width=32), min_size=2, max_size=8))
def test_the_second_and_third_kl_estimators_are_never_negative(backend, kl_estimator, values):
    rows = torch.tensor([values])
    mask = torch.ones_like(rows, dtype=torch.bool)
    for ref in (rows.flip(1), rows.nextafter(torch.tensor(-100.0)), rows):
        with rlkern.use_backend(backend):
            metrics = rlkern.token_objective(
                rows, torch.zeros_like(rows), mask, ref_logprob=ref, kl_estimator=kl_estimator
            ).metrics
        assert rlkern.metrics_dict(metrics)["kl"] >= 0


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6))
def test_weights_sum_to_one_and_to_the_same_when_the_batch_is_split(flags):
    mask = torch.tensor(flags)
    counts = {"token_mean": mask.sum(), "sequence_token_mean": mask.any(1).sum()}
    for mode, count in counts.items():
        whole = rlkern.aggregate.token_weight(mask, mode)
        assert whole.sum().item() == pytest.approx(1.0 if mask.any() else 0.0)
        assert whole[~mask].eq(0).all() and whole[mask].gt(0).all()
        parts = [rlkern.aggregate.token_weight(m, mode, count=count) for m in mask.split(2)]
        assert torch.cat(parts).equal(whole)
    share = rlkern.aggregate.token_weight(mask, "sequence_token_sum", constant=4, count=2)
    assert share.equal(mask / 8)


@EVERY
@pytest.mark.parametrize("shape", ((0, 3), (2, 0), (0, 0), (0,)))
def test_a_batch_without_rows_is_zero_everywhere(backend, shape):
    case = Case("no rows", B=1, T=1, V=7, mask="full", temperature="rows", keep="narrow")
    full = make_batch(case, torch.float32)
    batch = each(full, lambda x: x[0, :0].reshape(*shape, *x.shape[2:]))
    with rlkern.use_backend(backend):
        weight = torch.zeros(shape)
        for inplace in (False, True):
            loss, metrics, gradient = loss_and_gradient(batch, weight, inplace)
            assert loss == 0 and gradient.shape == (*shape, 7)
            assert scores_and_gradient(batch, inplace)[0].shape == shape
        assert set(rlkern.metrics_dict(metrics).values()) == {0.0}
        assert rlkern.reverse_scan(torch.zeros(shape), torch.zeros(shape)).shape == shape


def strided(x):
    """Returns the same numbers as a view that is neither contiguous nor at the storage's start."""
    room = torch.zeros(x.shape[1] + 1, x.shape[0] + 2, dtype=x.dtype)
    view = room[1:, 1:-1].T
    view.copy_(x)
    return view


@EVERY
@given(batches())
def test_views_of_vectors_mean_what_their_copies_do(backend, batch):
    names = (
        "token",
        "advantage",
        "mask",
        "old_logprob",
        "ref_logprob",
        "temperature",
        "correction",
    )
    views = Batch(**{**vars(batch), **{name: strided(getattr(batch, name)) for name in names}})
    with rlkern.use_backend(backend):
        got = loss_and_gradient(views, strided(weight_of(batch)))
        assert same_bits(got, loss_and_gradient(batch))
        assert same_bits(scores_and_gradient(views), scores_and_gradient(batch))
        rows, decay = batch.advantage, batch.temperature
        expected = rlkern.reverse_scan(rows, decay)
        assert rlkern.reverse_scan(strided(rows), strided(decay)).equal(expected)


@EVERY
def test_a_vocabulary_of_one_has_probability_one(backend):
    with rlkern.use_backend(backend):
        out = rlkern.token_logprob(torch.tensor([[0.0]]), torch.tensor([0]))
    assert [x.item() for x in out] == [0.0, 0.0, 0.0, 1.0]
