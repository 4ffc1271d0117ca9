# SPDX-License-Identifier: Apache-2.0
"""The temporal-difference loss of action values against its equations written out."""

import math

import pytest
import torch

import rlkern
from rlkern.backends import _load
from rlkern.backends.eager.td_loss import Transitions

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
NAN = math.nan
SECOND = {"double": "online_next_q", "twin_min": "second_next_q", "sarsa": "next_action",
          "expected": "next_probability"}  # fmt: skip
BOOTSTRAPS = ("max", *SECOND)


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, poisoned_memory):
    """Runs every test on each backend, in memory that was NaN."""
    with rlkern.use_backend(request.param):
        yield request.param


def penalty(kind, error, delta):
    if kind == "huber" and abs(error) > delta:
        return delta * (abs(error) - delta / 2)
    return error**2 if kind == "full_squared" else 0.5 * error**2


def transitions(B=9, A=5, seed=1, dtype=torch.float64):
    """Returns (arguments, others) of td_loss; some episodes are done, with NaN beyond them."""
    random = torch.Generator().manual_seed(seed)
    q, next_q, other = torch.randn(3, B, A, generator=random, dtype=dtype)
    action, then = torch.randint(A, (2, B), generator=random)
    reward = torch.randn(B, generator=random, dtype=dtype)
    done = torch.rand(B, generator=random) < 0.3
    done[0], done[1] = True, False
    next_q[done] = NAN
    others = {"online_next_q": other, "second_next_q": other, "next_action": then,
              "next_probability": other.softmax(-1)}  # fmt: skip
    return (q, action, reward, done, next_q), others


def bootstrapped(bootstrap, row, second):
    """Returns the value of the next state by its equation."""
    if bootstrap == "max":
        return max(row)
    if bootstrap == "double":
        return row[second.index(max(second))]
    if bootstrap == "twin_min":
        return max(min(x, y) for x, y in zip(row, second))
    if bootstrap == "sarsa":
        return row[second]
    return sum(p * x for p, x in zip(second, row))


@pytest.mark.parametrize("kind", ("squared", "full_squared", "huber"))
@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_every_temporal_difference_loss_is_its_equation(bootstrap, kind):
    (q, action, reward, done, next_q), others = transitions()
    second = others[SECOND[bootstrap]] if bootstrap in SECOND else None
    chosen = {SECOND[bootstrap]: second} if bootstrap in SECOND else {}
    expected, errors = [], []
    for i in range(len(q)):
        extra = None if second is None else second[i].tolist()
        future = 0 if done[i] else bootstrapped(bootstrap, next_q[i].tolist(), extra)
        errors.append(reward[i].item() + 0.9 * future - q[i, action[i]].item())
        expected.append(penalty(kind, -errors[-1], 0.7))
    weight = torch.linspace(0.1, 1, len(q), dtype=torch.float64)
    out = rlkern.td_loss(
        q, action, reward, done, next_q, discount=0.9, bootstrap=bootstrap, kind=kind, delta=0.7,
        weight=weight, **chosen,
    )  # fmt: skip
    torch.testing.assert_close(out.error, torch.tensor(errors, dtype=torch.float64))
    loss = sum(w * x for w, x in zip(weight.tolist(), expected))
    assert out.loss.item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_the_gradient_of_td_loss_reaches_the_taken_actions_of_q_alone(bootstrap):
    (q, action, *rest), others = transitions()
    name = SECOND.get(bootstrap)
    chosen = {name: others[name]} if name else {}
    weight = torch.linspace(0, 1, len(q), dtype=torch.float64)

    def loss(q):
        return rlkern.td_loss(q, action, *rest, bootstrap=bootstrap, weight=weight, **chosen).loss

    q.requires_grad_()
    assert torch.autograd.gradcheck(loss, q)
    (grad,) = torch.autograd.grad(loss(q), q)
    taken = torch.nn.functional.one_hot(action, q.shape[1]).bool()
    assert grad[~taken].eq(0).all() and grad[0].eq(0).all() and grad[1:][taken[1:]].ne(0).all()


def test_a_transition_of_weight_zero_may_hold_anything():
    arguments, _ = transitions()
    q, action, reward, done, next_q = (x.clone() for x in arguments)
    weight = torch.full((len(q),), 0.2, dtype=torch.float64)
    weight[3] = 0
    expected = rlkern.td_loss(q, action, reward, done, next_q, weight=weight).loss
    for x in (q, reward, next_q):
        x[3] = NAN
    action[3] = -100
    out = rlkern.td_loss(q.requires_grad_(), action, reward, done, next_q, weight=weight)
    out.loss.backward()
    assert out.loss.item() == expected.item() and out.error[3] == 0 and q.grad[3].eq(0).all()


def test_a_next_value_that_is_nan_shows_whatever_the_bootstrap():
    (q, action, reward, done, next_q), others = transitions()
    next_q[1] = NAN
    for bootstrap in BOOTSTRAPS:
        name = SECOND.get(bootstrap)
        chosen = {name: others[name]} if name else {}
        out = rlkern.td_loss(q, action, reward, done, next_q, bootstrap=bootstrap, **chosen)
        assert out.error.isnan().tolist() == [i == 1 for i in range(len(q))], bootstrap


def test_double_q_of_the_same_network_is_the_maximum():
    (q, action, reward, done, next_q), _ = transitions()
    plain = rlkern.td_loss(q, action, reward, done, next_q)
    double = rlkern.td_loss(
        q, action, reward, done, next_q, bootstrap="double", online_next_q=next_q.nan_to_num()
    )
    twin = rlkern.td_loss(
        q, action, reward, done, next_q, bootstrap="twin_min", second_next_q=next_q
    )
    assert plain.loss.equal(double.loss) and plain.loss.equal(twin.loss)


def test_an_action_outside_the_table_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.delenv("RLKERN_CHECK_VALUES", raising=False)
    (q, action, *rest), _ = transitions()
    action[2] = 5
    with pytest.raises(ValueError, match=r"td_loss: action must be in \[0, 5\), got 5"):
        rlkern.td_loss(q, action, *rest)


def td_call(**changed):
    x = torch.ones(2, 3)
    good = {"q": x, "action": torch.zeros(2).long(), "reward": torch.ones(2),
            "done": torch.zeros(2).bool(), "next_q": x}  # fmt: skip
    return rlkern.td_loss(**{**good, **changed})


@pytest.mark.parametrize(
    "changed,sentence",
    (
        ({"q": torch.ones(2)}, r"q must be \(B, A\) with A > 0, got \(2,\)"),
        ({"action": torch.tensor([0, 3])}, r"action must be in \[0, 3\), got 3"),
        ({"done": torch.zeros(2)}, "done must be bool, got"),
        ({"bootstrap": "soft"}, "bootstrap must be one of max, .*, got 'soft'"),
        ({"bootstrap": "double"}, "online_next_q must be given with bootstrap 'double'"),
        ({"next_action": torch.zeros(2).long()}, "next_action must not be given with"),
        ({"kind": "clipped"}, "kind must be one of squared, full_squared, huber"),
        ({"discount": NAN}, "discount must be finite"),
    ),
)
def test_bad_input_ends_in_one_sentence(changed, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        td_call(**changed)


def test_double_backward_raises():
    q, *rest = transitions()[0]
    loss = rlkern.td_loss(q.requires_grad_(), *rest).loss
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss, q, create_graph=True)


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
@pytest.mark.parametrize("actions", (1, 4, 19))
def test_tables_of_any_width_give_what_the_reference_gives_in_float64(backend, bootstrap, actions):
    (q, *rest), others = transitions(B=33, A=actions, dtype=torch.float32)
    name = SECOND.get(bootstrap)

    def results(dtype):
        leaf = q.to(dtype).requires_grad_()
        floats = [x.to(dtype) if x.is_floating_point() else x for x in rest]
        out = rlkern.td_loss(leaf, *floats, bootstrap=bootstrap,
                             **({name: others[name]} if name else {}))  # fmt: skip
        return *out, *torch.autograd.grad(out.loss, leaf)

    with rlkern.use_backend("eager"):
        expected = results(torch.float64)
    for got, x in zip(results(torch.float32), expected, strict=True):
        torch.testing.assert_close(got.double(), x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ("squared", "full_squared", "huber"))
def test_a_transition_among_hundreds_has_the_bits_it_has_alone(kind):
    (q, *rest), _ = transitions(B=531, A=3, dtype=torch.float32)  # more than two blocks of them
    weight = torch.rand(531)

    def results(rows):
        leaf = q[rows].requires_grad_()
        given = (x[rows] for x in rest)
        out = rlkern.td_loss(leaf, *given, kind=kind, delta=0.5, weight=weight[rows])
        return out.error, *torch.autograd.grad(out.loss, leaf)

    error, grad = results(slice(None))
    for i in (0, 15, 255, 256, 511, 512, 529, 530):
        alone = results(slice(i, i + 1))
        assert alone[0].equal(error[i : i + 1]) and alone[1].equal(grad[i : i + 1])


@pytest.mark.parametrize("bootstrap", ("max", "twin_min", "double", "expected"))
@pytest.mark.parametrize("place", range(6))
def test_a_single_next_value_that_is_nan_is_not_lost(bootstrap, place):
    (q, action, reward, done, next_q), others = transitions(A=6)
    name = SECOND.get(bootstrap)
    chosen = {name: others[name].clone()} if name else {}
    next_q[1, place] = NAN
    if bootstrap == "double":  # whose own NaN is the largest
        chosen[name][1, place] = NAN
    out = rlkern.td_loss(q, action, reward, done, next_q, bootstrap=bootstrap, **chosen)
    assert out.error.isnan().tolist() == [i == 1 for i in range(len(q))]


def test_the_operation_passes_opcheck():
    (q, *rest), others = transitions()
    coef = torch.tensor([0.9, 1.0], dtype=torch.float64)
    q, second = q.requires_grad_(), others["online_next_q"]
    for bootstrap, extra in (("max", (None, None)), ("double", (second, None))):
        call = (q, *rest, *extra, None, bootstrap, "huber", coef)
        torch.library.opcheck(torch.ops.rlkern.td_loss.default, call)


def test_a_next_action_outside_the_table_is_refused_where_an_episode_goes_on_only():
    (q, action, reward, _, next_q), _ = transitions(B=2)
    next_q = torch.ones_like(next_q)
    done, then = torch.tensor([True, False]), torch.tensor([99, 0])
    given = {"bootstrap": "sarsa", "next_action": then}
    out = rlkern.td_loss(q, action, reward, done, next_q, **given)
    assert out.loss.isfinite()
    with pytest.raises(ValueError, match=r"next_action must be in \[0, 5\), got 99"):
        rlkern.td_loss(q, action, reward, ~done, next_q, **given)


def test_an_empty_batch_loses_nothing():
    (q, *rest), _ = transitions()
    out = rlkern.td_loss(q[:0], *(x[:0] for x in rest))
    assert out.loss.item() == 0 and out.error.shape == (0,) and out.metrics.eq(0).all()


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ extension is not built")
@pytest.mark.parametrize(
    "changed,sentence",
    (
        ({"action": torch.tensor([0, 5])}, r"action must be in \[0, 3\), got 5"),
        ({"next_action": torch.tensor([0, -1]), "bootstrap": "sarsa"}, "next_action must be in"),
        ({"bootstrap": "sarsa"}, "other and next_action must be those of the bootstrap"),
        ({"next_q": torch.ones(2, 2)}, "next_q must be 6 contiguous elements"),
        ({"reward": torch.ones(2).double()}, "reward must be 2 contiguous elements of float32"),
    ),
)
def test_cpp_itself_refuses_what_would_be_read_beyond_its_end(changed, sentence):
    x = torch.ones(2, 3)
    good = {"action": torch.zeros(2).long(), "reward": torch.ones(2), "next_q": x,
            "done": torch.zeros(2).bool(), "bootstrap": "max"}  # fmt: skip
    given = {**good, **changed}
    bootstrap = given.pop("bootstrap")
    coef = torch.tensor([0.9, 1.0], dtype=torch.float64)
    with pytest.raises((TypeError, ValueError), match=sentence):
        _load("cpu")[0].td_loss(x, Transitions(**given), bootstrap, "huber", coef)
