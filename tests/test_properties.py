# SPDX-License-Identifier: Apache-2.0
"""What holds for any batch: drawn by hypothesis, on every backend that serves the CPU."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlkern
from rlkern.backends import _load
from rlkern.testing.cases import Batch, Case, make_batch

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
# k3 grows as exp(−d): far from the reference it leaves float32.
TERMS = {"kl_coef": 0.3, "kl_estimator": "k2", "entropy_coef": 0.2}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NATIVE = pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ extension is not built")

settings.register_profile("rlkern", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("rlkern")


@pytest.fixture(scope="module", autouse=True)
def fresh_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@st.composite
def batches(draw, dtypes=DTYPES, smallest=1):
    """Draws a batch with NaN and −100 wherever the mask is False."""
    B, T = draw(st.integers(smallest, 4)), draw(st.integers(smallest, 5))
    V = draw(st.sampled_from((1, 2, 7, 16, 33, 64, 129)))
    values = draw(st.sampled_from(("normal", "offset", "wide")))
    case = Case("drawn", B=B, T=T, V=V, mask="full", values=values, temperature="rows")
    batch = make_batch(case, draw(st.sampled_from(dtypes)))
    flags = draw(st.lists(st.booleans(), min_size=B * T, max_size=B * T))
    batch.mask = torch.tensor(flags, dtype=torch.bool).reshape(B, T)
    return batch


def with_garbage(batch: Batch, garbage: float) -> Batch:
    """Returns the batch with garbage wherever nothing is counted."""
    rows = {}
    for name in ("logits", "advantage", "old_logprob", "ref_logprob", "token"):
        x = getattr(batch, name).clone()
        x[~batch.mask] = -100 if name == "token" else garbage
        rows[name] = x
    return Batch(**{**vars(batch), **rows})


def rows_of(batch: Batch, index) -> Batch:
    """Returns the batch with its sequences indexed."""
    return Batch(**{name: x[index] for name, x in vars(batch).items()})


def weight_of(batch: Batch):
    return rlkern.aggregate.token_weight(batch.mask, "sequence_token_mean", count=3)


def loss_and_gradient(batch: Batch, weight=None, inplace=False, token=None):
    """Returns (loss, metrics, gradient of the logits) of a policy loss with all its terms."""
    leaf = batch.logits.detach().clone().requires_grad_()
    out = rlkern.policy_loss(
        leaf * 1, batch.token if token is None else token, batch.advantage, batch.mask,
        old_logprob=batch.old_logprob, ref_logprob=batch.ref_logprob,
        temperature=batch.temperature, weight=weight_of(batch) if weight is None else weight,
        inplace=inplace, **TERMS,
    )  # fmt: skip
    out.loss.backward()
    return out.loss.detach(), out.metrics, leaf.grad


def scores_and_gradient(batch: Batch, inplace=False):
    """Returns logprob, entropy, lse and the gradient of the logits, all of them per row."""
    leaf = batch.logits.detach().clone().requires_grad_()
    out = rlkern.token_logprob(
        leaf * 1, batch.token, temperature=batch.temperature, mask=batch.mask, inplace=inplace
    )
    torch.autograd.backward(out, [torch.full_like(x, 0.3 + i) for i, x in enumerate(out)])
    return *(x.detach() for x in out), leaf.grad


def per_row(batch: Batch):
    """Returns everything that is computed per row, by either operation."""
    return *scores_and_gradient(batch), loss_and_gradient(batch)[2]


def same_bits(xs, ys) -> bool:
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


EVERY = pytest.mark.parametrize("backend", BACKENDS)


@EVERY
@given(batches(), st.sampled_from((math.nan, math.inf, -math.inf, -100.0)))
def test_what_is_masked_never_leaks(backend, batch, garbage):
    with rlkern.use_backend(backend):
        clean = *loss_and_gradient(batch), *scores_and_gradient(batch)
        dirty_batch = with_garbage(batch, garbage)
        weight = weight_of(batch).masked_fill(~batch.mask, garbage)
        dirty = *loss_and_gradient(dirty_batch, weight), *scores_and_gradient(dirty_batch)
    assert same_bits(clean, dirty)
    assert clean[2][~batch.mask].eq(0).all() and clean[6][~batch.mask].eq(0).all()
    assert all(x.isfinite().all() for x in (clean[0], clean[2], clean[6]))


@EVERY
@given(batches(dtypes=(torch.float64,)), st.floats(-1e3, 1e3))
def test_a_common_offset_of_the_logits_changes_only_the_lse(backend, batch, offset):
    shifted = Batch(**{**vars(batch), "logits": batch.logits + offset})
    with rlkern.use_backend(backend):
        for got, expected in zip(loss_and_gradient(shifted), loss_and_gradient(batch)):
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
        moved = torch.where(batch.mask, offset / batch.temperature.double(), 0.0)
        got, expected = scores_and_gradient(shifted), scores_and_gradient(batch)
    torch.testing.assert_close(got[2], expected[2] + moved, rtol=1e-9, atol=1e-7)


@NATIVE
@given(batches(), st.randoms(use_true_random=False))
def test_a_row_does_not_depend_on_the_order_of_the_batch(batch, random):
    order = list(range(len(batch.mask)))
    random.shuffle(order)
    with rlkern.use_backend("cpu"):
        expected = [x[order] for x in per_row(batch)]
        assert same_bits(per_row(rows_of(batch, order)), expected)


@NATIVE
@given(batches(), st.integers(0, 4))
def test_a_row_does_not_depend_on_how_the_batch_is_split(batch, cut):
    with rlkern.use_backend("cpu"):
        parts = [per_row(rows_of(batch, part)) for part in (slice(None, cut), slice(cut, None))]
        assert same_bits([torch.cat(pair) for pair in zip(*parts)], per_row(batch))


@NATIVE
@given(batches(), st.integers(1, 3))
def test_a_row_does_not_depend_on_padding(batch, extra):
    def pad(x):
        tail = x.new_full((x.shape[0], extra, *x.shape[2:]), -100 if x is batch.token else math.nan)
        return torch.cat([x, torch.zeros_like(tail) if x is batch.mask else tail], 1)

    padded = Batch(**{name: pad(x) for name, x in vars(batch).items()})
    padded.temperature = padded.temperature.nan_to_num(1.0)
    T = batch.mask.shape[1]
    with rlkern.use_backend("cpu"):
        assert same_bits([x[:, :T] for x in per_row(padded)], per_row(batch))
        assert same_bits(loss_and_gradient(padded)[:2], loss_and_gradient(batch)[:2])


@NATIVE
@given(batches())
def test_packed_rows_give_the_bits_of_padded_ones(batch):
    kept = {name: x[batch.mask] for name, x in vars(batch).items()}
    with rlkern.use_backend("cpu"):
        loss, metrics, gradient = loss_and_gradient(batch)
        packed = loss_and_gradient(Batch(**kept), weight=weight_of(batch)[batch.mask])
        assert same_bits(packed, (loss, metrics, gradient[batch.mask]))
        flat = Batch(**{name: x.flatten(0, 1) for name, x in vars(batch).items()})
        scores = [x.flatten(0, 1) for x in scores_and_gradient(batch)]
        assert same_bits(scores_and_gradient(flat), scores)


@NATIVE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neither_threads_nor_a_second_run_change_a_bit(dtype):
    case = Case("threads", B=9, T=13, V=1021)  # enough work for two threads
    batch, threads = make_batch(case, dtype), torch.get_num_threads()
    batch.temperature = torch.ones(9, 13)
    results = []
    with rlkern.use_backend("cpu"):
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append((*loss_and_gradient(batch), *scores_and_gradient(batch)))
    torch.set_num_threads(threads)
    assert all(same_bits(result, results[0]) for result in results[1:])


@EVERY
@given(batches())
def test_in_place_gives_the_bits_of_out_of_place(backend, batch):
    with rlkern.use_backend(backend):
        assert same_bits(loss_and_gradient(batch, inplace=True), loss_and_gradient(batch))
        assert same_bits(scores_and_gradient(batch, inplace=True), scores_and_gradient(batch))


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
        logprob, entropy, _, _ = scores_and_gradient(batch)
    V = batch.logits.shape[-1]
    few_ulp = 8 * torch.finfo(torch.float32).eps
    assert logprob.le(0).all()
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
    case = Case("no rows", B=1, T=1, V=7, mask="full", temperature="rows")
    none = {name: x[0, :0] for name, x in vars(make_batch(case, torch.float32)).items()}
    batch = Batch(**{name: x.reshape(*shape, *x.shape[1:]) for name, x in none.items()})
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
    names = ("token", "advantage", "mask", "old_logprob", "ref_logprob", "temperature")
    views = Batch(**{**vars(batch), **{name: strided(getattr(batch, name)) for name in names}})
    with rlkern.use_backend(backend):
        got = loss_and_gradient(views, strided(weight_of(batch)))
        assert same_bits(got, loss_and_gradient(batch))
        assert same_bits(scores_and_gradient(views), scores_and_gradient(batch))
        rows, decay = batch.advantage, batch.temperature
        expected = rlkern.reverse_scan(rows, decay)
        assert rlkern.reverse_scan(strided(rows), strided(decay)).equal(expected)


@EVERY
@pytest.mark.parametrize("inplace", (False, True))
def test_logits_that_are_nan_show_in_the_loss_and_in_their_own_row_alone(backend, inplace):
    batch = make_batch(Case("nan", B=2, T=3, V=33, mask="full", temperature="rows"), torch.float32)
    batch.logits[1, 2, 5] = math.nan
    with rlkern.use_backend(backend):
        loss, _, gradient = loss_and_gradient(batch, inplace=inplace)
        logprob = scores_and_gradient(batch, inplace)[0]
    assert loss.isnan() and logprob.isnan().sum() == 1 and logprob[1, 2].isnan()
    assert gradient.isnan().any(-1).nonzero().tolist() == [[1, 2]]


@EVERY
def test_a_vocabulary_of_one_has_probability_one(backend):
    with rlkern.use_backend(backend):
        out = rlkern.token_logprob(torch.tensor([[0.0]]), torch.tensor([0]))
    assert [x.item() for x in out] == [0.0, 0.0, 0.0]
