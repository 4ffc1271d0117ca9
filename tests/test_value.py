# SPDX-License-Identifier: Apache-2.0
"""Losses of values of states against formulas written out, and KL controllers."""

import math

import pytest
import torch
from backend_helpers import CHOSEN, served_by
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern.backends import _load
from rlkern.backends.eager.value_loss import VALUE_KINDS

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
CLIPPING = [name for name, kind in VALUE_KINDS.items() if kind.rule != "free"]
NAN = math.nan


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def penalty(kind, error, delta):
    if "huber" in kind:
        size = abs(error)
        return 0.5 * error**2 if size <= delta else delta * (size - delta / 2)
    return error**2 if "full" in kind or kind == "clipped_only" else 0.5 * error**2


def by_hand(kind, value, old, target, clip, delta):
    """Returns the loss of one element by the equation of its kind."""
    near = min(max(value, old - clip), old + clip)
    free, held = (penalty(kind, v - target, delta) for v in (value, near))
    if kind not in CLIPPING:
        return free
    return held if kind == "clipped_only" else max(free, held)


def rows(n=40, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    value, old, target = 2 * torch.randn(3, n, generator=random, dtype=dtype)
    weight = torch.rand(n, generator=random, dtype=dtype)
    weight[::7] = 0
    return value, old, target, weight


def clip_of(kind):
    return {"clip": 0.5} if kind in CLIPPING else {}


@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_every_kind_of_value_loss_is_its_equation(backend, kind):
    value, old, target, weight = rows()
    mask = weight != 0
    columns = zip(*(x.tolist() for x in (value, old, target, weight)))
    terms = [w * by_hand(kind, v, o, t, 0.5, 0.7) for v, o, t, w in columns]
    value, old, target = (torch.where(mask, x, NAN) for x in (value, old, target))
    out = rlkern.value_loss(
        value, old, target, mask, kind=kind, delta=0.7, weight=weight, **clip_of(kind)
    )
    assert out.loss.item() == pytest.approx(sum(terms), rel=1e-12)


@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_the_default_weights_of_float64_values_have_all_their_digits(backend, kind):
    value, old, target, _ = rows(2000)
    mask = torch.arange(2000) % 3 != 1
    columns = zip(*(x[mask].tolist() for x in (value, old, target)))
    terms = [by_hand(kind, v, o, t, 0.5, 0.7) for v, o, t in columns]
    out = rlkern.value_loss(value, old, target, mask, kind=kind, delta=0.7, **clip_of(kind))
    assert out.loss.item() == pytest.approx(math.fsum(terms) / len(terms), rel=1e-12)


@pytest.mark.parametrize("kind", CLIPPING)
@pytest.mark.parametrize("name", CHOSEN)
def test_an_old_value_that_is_nan_shows_in_loss_and_gradient(monkeypatch, name, kind):
    monkeypatch.delenv("RLKERN_CHECK_VALUES")
    leaf, target = torch.tensor([3.0, 2.0, 0.0], requires_grad=True), torch.tensor([1.0, 2.0, 0.1])
    old, mask = torch.tensor([0.0, NAN, 0.0]), torch.ones(3).bool()
    with served_by(name):
        loss = rlkern.value_loss(leaf, old, target, mask, kind=kind, clip=0.5).loss
        (grad,) = torch.autograd.grad(loss, leaf)
    assert loss.isnan() and grad.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_the_gradient_of_value_loss_is_right_and_zero_where_masked(backend, kind):
    value, old, target, weight = rows()
    mask = weight != 0
    leaf = value.requires_grad_()

    def loss(v):
        return rlkern.value_loss(
            v, old, target, mask, kind=kind, delta=0.7, weight=weight, **clip_of(kind)
        ).loss

    assert torch.autograd.gradcheck(loss, leaf)
    garbage = torch.where(mask, value.detach(), NAN).requires_grad_()
    (3.0 * loss(garbage)).backward()
    (plain,) = torch.autograd.grad(loss(leaf), leaf)
    assert garbage.grad[~mask].eq(0).all()
    torch.testing.assert_close(garbage.grad, 3 * plain)


def test_an_estimate_on_the_wrong_side_of_its_clip_comes_back_only_under_the_maximum(backend):
    value = torch.tensor([2.0], requires_grad=True)
    old, target, mask = torch.zeros(1), -torch.ones(1), torch.ones(1).bool()
    for kind, expected in (("clipped", 3.0), ("full_clipped", 6.0), ("clipped_only", 0.0)):
        loss = rlkern.value_loss(value, old, target, mask, kind=kind, clip=0.5).loss
        assert torch.autograd.grad(loss, value)[0].item() == expected


def test_huber_with_a_wide_delta_is_squared_and_twice_that_is_the_full_square(backend):
    value, old, target, _ = rows()
    mask = torch.ones_like(value).bool()

    def loss(kind, **options):
        return rlkern.value_loss(value, old, target, mask, kind=kind, **options).loss.item()

    assert loss("huber", delta=100.0) == pytest.approx(loss("squared"), rel=1e-12)
    assert loss("full_squared") == pytest.approx(2 * loss("squared"), rel=1e-12)
    assert loss("clipped_huber", delta=100.0) == pytest.approx(loss("clipped"), rel=1e-12)
    assert loss("clipped", clip=1e6) == pytest.approx(loss("squared"), rel=1e-12)


def test_explained_variance_and_clip_fraction_are_what_a_person_computes(backend):
    value, target = torch.tensor([1.0, 2.0, 4.0, NAN]), torch.tensor([2.0, 2.0, 5.0, NAN])
    old, mask = torch.tensor([1.0, 0.0, 0.0, NAN]), torch.tensor([True, True, True, False])
    out = rlkern.value_loss(value, old, target, mask, clip=0.5)
    found = rlkern.value_metrics_dict(out.metrics)
    # residuals 1, 0, 1 have variance 2/9; targets 2, 2, 5 have variance 2
    assert found["explained_variance"] == pytest.approx(1 - (2 / 9) / 2)
    assert found["count"] == 3 and found["value_mean"] == pytest.approx(7 / 3)
    assert found["target_mean"] == 3 and found["clip_fraction"] == pytest.approx(2 / 3)


def test_metrics_of_parts_add_up_and_survive_a_large_mean(backend):
    value, old, target, _ = (x.float() for x in rows(10_000))
    target = (value + 0.1 * target + 300).clone()
    value = value + 300
    mask = torch.ones_like(value).bool()
    whole = rlkern.value_loss(value, None, target, mask, kind="squared").metrics
    parts = [rlkern.value_loss(v, None, t, m, kind="squared").metrics
             for v, t, m in zip(*(x.split(3000) for x in (value, target, mask)))]  # fmt: skip
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-9)
    exact = 1 - (target - value).double().var() / target.double().var()
    found = rlkern.value_metrics_dict(whole)["explained_variance"]
    assert found == pytest.approx(exact.item(), abs=1e-6)


def test_targets_that_agree_have_no_explained_variance(backend):
    x = torch.ones(4)
    out = rlkern.value_loss(2 * x, None, x, x.bool(), kind="squared")
    assert math.isnan(rlkern.value_metrics_dict(out.metrics)["explained_variance"])


def test_nothing_counted_loses_nothing(backend):
    value = torch.full((2, 3), NAN, requires_grad=True)
    out = rlkern.value_loss(value, value.detach(), value.detach(), torch.zeros(2, 3).bool())
    out.loss.backward()
    assert out.loss.item() == 0 and value.grad.eq(0).all() and out.metrics.eq(0).all()


def test_low_precision_values_are_lost_in_float32_and_get_their_own_gradient_dtype(backend):
    value, old, target, _ = (x.bfloat16() for x in rows())
    leaf = value.requires_grad_()
    out = rlkern.value_loss(leaf, old, target, torch.ones(len(leaf)).bool())
    out.loss.backward()
    assert out.loss.dtype == torch.float32 and leaf.grad.dtype == torch.bfloat16


def value_call(**changed):
    x = torch.ones(2, 3)
    good = {"value": x, "old_value": x, "target": x, "mask": x.bool()}
    return rlkern.value_loss(**{**good, **changed})


@pytest.mark.parametrize(
    "changed,sentence",
    (
        ({"target": torch.ones(2)}, r"target must be \(2, 3\) on cpu, got \(2,\) float32"),
        ({"mask": torch.ones(2, 3)}, "mask must be bool, got"),
        ({"old_value": None}, "kind 'clipped' clips, so old_value must be given"),
        ({"kind": "mse"}, "kind must be one of squared, .*, got 'mse'"),
        ({"kind": "huber", "clip": 0.1}, "clip belongs to the kinds that clip"),
        ({"clip": 0.0}, "clip must be greater than 0, got 0.0"),
        ({"delta": -1.0}, "delta must be greater than 0, got -1.0"),
        ({"value": torch.full((2, 3), NAN)}, "value must be finite where mask is True"),
    ),
)
def test_bad_input_ends_in_one_sentence(changed, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        value_call(**changed)


def test_the_operation_passes_opcheck(backend):
    value, old, target, weight = (x.float() for x in rows(8))
    coef = torch.tensor([0.2, 1.0], dtype=torch.float64)
    for old_value, kind in ((old, "clipped"), (None, "squared")):
        arguments = (value.requires_grad_(), target, old_value, weight, kind, coef)
        torch.library.opcheck(torch.ops.rlkern.value_loss.default, arguments)


def test_double_backward_raises(backend):
    value, old, target, weight = rows()
    loss = rlkern.value_loss(value.requires_grad_(), old, target, weight > 0).loss
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss, value, create_graph=True)


def test_no_coefficient_or_shape_compiles_a_third_graph():
    def run(value, old, target, clip, discount):
        values = rlkern.value_loss(value, old, target, torch.ones_like(value).bool(), clip=clip)
        action = torch.zeros(value.shape[0], dtype=torch.int64)
        q = value.reshape(value.shape[0], 1) * torch.ones(1, 3)
        td = rlkern.td_loss(q, action, old, old > 0, q.detach(), discount=discount)
        return values.loss + td.loss

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for n, clip, discount in ((5, 0.2, 0.9), (6, 0.3, 0.8), (7, 0.4, 0.99), (9, 0.1, 0.5)):
        value, old, target, _ = rows(n)
        value.requires_grad_()
        got, expected = (f(value, old, target, clip, discount) for f in (compiled, run))
        assert got.equal(expected)
        assert torch.autograd.grad(got, value)[0].equal(torch.autograd.grad(expected, value)[0])
    assert counter.frame_count <= 2


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ extension is not built")
def test_threads_do_not_change_the_bits_of_a_value_loss():
    value, old, target, weight = (x.float() for x in rows(200_001))
    weight = weight / weight.sum()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with rlkern.use_backend("cpu"):
                found.append(rlkern.value_loss(value, old, target, weight > 0, weight=weight))
    finally:
        torch.set_num_threads(before)
    assert found[0].loss.equal(found[1].loss) and found[0].metrics.equal(found[1].metrics)


def test_a_fixed_coefficient_stays_and_an_adaptive_one_follows_its_target():
    fixed = rlkern.FixedKl(0.1)
    fixed.update(kl=100.0, count=512)
    assert fixed.coef == 0.1
    for kl, share in ((12.0, 0.2), (6.6, 0.1), (6.0, 0.0), (5.4, -0.1), (0.0, -0.2)):
        controller = rlkern.AdaptiveKl(0.1, target=6.0, horizon=10_000)
        controller.update(kl=kl, count=256)
        assert controller.coef == pytest.approx(0.1 * (1 + share * 256 / 10_000))
        again = rlkern.AdaptiveKl(9.0, target=6.0, horizon=10_000)
        again.load_state_dict(controller.state_dict())
        assert again.coef == controller.coef


def test_a_controller_refuses_what_would_turn_its_sign():
    with pytest.raises(ValueError, match="AdaptiveKl: target must be greater than 0, got 0.0"):
        rlkern.AdaptiveKl(0.1, target=0.0, horizon=10)
    with pytest.raises(ValueError, match="FixedKl: coef must be at least 0, got -1.0"):
        rlkern.FixedKl(-1.0)
    controller = rlkern.AdaptiveKl(0.1, target=1.0, horizon=10)
    with pytest.raises(ValueError, match=r"AdaptiveKl: count must be in \[0, 50\], got 51"):
        controller.update(kl=0.0, count=51)
    with pytest.raises(ValueError, match="AdaptiveKl: kl must be finite"):
        controller.update(kl=NAN, count=5)
