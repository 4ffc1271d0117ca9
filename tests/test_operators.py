# SPDX-License-Identifier: Apache-2.0
"""The operations as autograd sees them: storage, versions, dtypes, steps that repeat."""

import importlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import rlkern
from rlkern.backends import _load
from rlkern.testing.cases import Case, make_batch

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
CASE = Case("operators", B=2, T=3, V=7, temperature="rows", softcap=3.0, keep="narrow")
FORMS = pytest.mark.parametrize("inplace", (False, True), ids=("functional", "in place"))
SCORERS = pytest.mark.parametrize("scorer", ("policy_loss", "sequence_loss", "token_logprob"))
TERMS = {"kl_coef": 0.3, "entropy_coef": 0.2}


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, poisoned_memory):
    """Runs every test on each backend, in memory that was NaN."""
    with rlkern.use_backend(request.param):
        yield request.param


def batch_and_leaf(dtype=torch.float64, case=CASE):
    batch = make_batch(case, dtype)
    return batch, batch.logits.detach().clone().requires_grad_()


def loss_of(batch, logits, **options):
    return rlkern.policy_loss(
        logits, batch.token, batch.advantage, batch.mask, old_logprob=batch.old_logprob,
        ref_logprob=batch.ref_logprob, **{**batch.softmax, **TERMS, **options},
    ).loss  # fmt: skip


def scored(scorer, batch, logits, inplace=False):
    """Returns a scalar of either operation that reads logits."""
    if scorer == "policy_loss":
        return loss_of(batch, logits, inplace=inplace)
    if scorer == "sequence_loss":
        return loss_of(batch, logits, inplace=inplace, algorithm="gspo")
    out = rlkern.token_logprob(
        logits, batch.token, mask=batch.mask, inplace=inplace, **batch.softmax
    )
    return (2 * out.logprob + 3 * out.entropy + 5 * out.lse).sum()


def gradient(scorer, batch, leaf, inplace=False, upstream=1.0):
    """Returns the gradient of a leaf, whose logits are an intermediate result."""
    loss = scored(scorer, batch, leaf * 1, inplace)
    return torch.autograd.grad(loss, leaf, torch.tensor(upstream, dtype=loss.dtype))[0]


@SCORERS
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_the_gradient_written_over_the_logits_has_the_bits_of_the_separate_one(scorer, dtype):
    batch, leaf = batch_and_leaf(dtype)
    for upstream in (1.0, 0.3, -7.0):
        separate = gradient(scorer, batch, leaf, False, upstream)
        assert torch.equal(gradient(scorer, batch, leaf, True, upstream), separate)


@SCORERS
@FORMS
def test_an_upstream_gradient_scales_the_result(scorer, inplace):
    batch, leaf = batch_and_leaf()
    expected = -0.3 * gradient(scorer, batch, leaf)
    torch.testing.assert_close(gradient(scorer, batch, leaf, inplace, -0.3), expected)


@FORMS
def test_a_loss_scale_beyond_the_range_of_float16_is_applied_in_float32(inplace):
    batch, leaf = batch_and_leaf(torch.float16)
    weight = torch.full(batch.mask.shape, 2.0**-7)
    loss = loss_of(batch, leaf * 1, inplace=inplace, weight=weight)
    loss.backward(torch.tensor(2.0**17))
    plain = torch.autograd.grad(loss_of(batch, leaf * 1, weight=weight), leaf)[0]
    expected = plain.float() * 2.0**17
    reachable = expected.abs() < 60000
    assert leaf.grad.float()[reachable].equal(expected[reachable].half().float())
    assert leaf.grad[~batch.mask].eq(0).all()


@SCORERS
def test_logits_that_another_operation_saved_cannot_be_overwritten_unnoticed(scorer):
    batch, leaf = batch_and_leaf()
    logits = torch.tanh(leaf)  # tanh saved its output
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scored(scorer, batch, logits, inplace=True).backward()


def test_logits_that_another_loss_has_read_cannot_be_overwritten_unnoticed():
    batch, leaf = batch_and_leaf()
    logits = leaf * 1
    first = scored("token_logprob", batch, logits)
    second = scored("policy_loss", batch, logits, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (first + second).backward()


def test_two_losses_in_place_on_the_same_logits_raise():
    batch, leaf = batch_and_leaf()
    logits = leaf * 1
    losses = [scored("policy_loss", batch, logits, inplace=True) for _ in range(2)]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(losses).backward()


def test_a_second_backward_through_a_gradient_that_was_scaled_in_place_raises():
    batch, leaf = batch_and_leaf()
    loss = scored("policy_loss", batch, leaf * 1, inplace=True)
    loss.backward(torch.tensor(0.5).double(), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_saved_gradient_is_scaled_where_it_lies_unless_the_graph_is_kept(monkeypatch):
    # Not where the factor is 1: there it may be handed on as it is.
    copies = []
    for name in ("cpu", "eager"):
        module = importlib.import_module(f"rlkern.backends.{name}")
        scaled = module.scaled
        monkeypatch.setattr(module, "scaled", lambda *x, f=scaled: copies.append(x) or f(*x))
    batch, leaf = batch_and_leaf()
    loss = scored("policy_loss", batch, leaf)
    half = torch.tensor(0.5).double()
    (kept,) = torch.autograd.grad(loss, leaf, half, retain_graph=True)
    assert len(copies) == 1
    (again,) = torch.autograd.grad(loss, leaf, half)
    assert len(copies) == 1 and torch.equal(kept, again)


def test_writing_over_the_logits_bumps_their_version_once_they_are_written():
    batch, leaf = batch_and_leaf()
    logits = leaf * 1
    before = logits._version
    loss_of(batch, logits, inplace=True)
    assert logits._version > before
    scores = leaf * 1
    before = scores._version
    scored("token_logprob", batch, scores, inplace=True).backward()
    assert scores._version > before


@SCORERS
@FORMS
def test_without_gradients_nothing_is_written_over_the_logits(scorer, inplace):
    batch, leaf = batch_and_leaf()
    logits = leaf.detach().clone()
    assert not scored(scorer, batch, logits, inplace).requires_grad
    with torch.no_grad():
        assert not scored(scorer, batch, leaf, inplace).requires_grad
    assert logits.equal(batch.logits) and logits._version == 0 and leaf._version == 0


@SCORERS
def test_double_backward_raises(scorer):
    batch, leaf = batch_and_leaf()
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(scored(scorer, batch, leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(scored(scorer, batch, leaf * 1, True), leaf, create_graph=True)


def test_double_backward_of_the_operations_on_vectors_raises():
    bias, decay = torch.rand(2, 2, 4).requires_grad_().unbind()
    logprob = torch.tensor([[-1.0]], requires_grad=True)
    loss = rlkern.token_objective(logprob, torch.ones(1), torch.tensor([[True]])).loss
    for output, leaf in ((rlkern.reverse_scan(bias, decay).sum(), bias), (loss, logprob)):
        with pytest.raises(RuntimeError, match="double backward"):
            torch.autograd.grad(output, leaf, create_graph=True)


@SCORERS
@FORMS
def test_autocast_changes_neither_dtype_nor_bits(scorer, inplace):
    batch, leaf = batch_and_leaf(torch.float32)
    plain, plain_gradient = scored(scorer, batch, leaf), gradient(scorer, batch, leaf)
    with torch.autocast("cpu", torch.bfloat16):
        cast = scored(scorer, batch, leaf * 1, inplace)
        cast_gradient = gradient(scorer, batch, leaf, inplace)
    assert cast.dtype == torch.float32 and cast.equal(plain)
    assert cast_gradient.equal(plain_gradient)


@SCORERS
@FORMS
def test_activation_checkpointing_around_head_and_loss_gives_the_same_gradient(scorer, inplace):
    batch, _ = batch_and_leaf(torch.float32)
    head = torch.nn.Linear(4, CASE.V)
    hidden = torch.randn(CASE.B, CASE.T, 4)

    def run(x):
        return scored(scorer, batch, head(x), inplace)

    run(hidden).backward()
    plain = head.weight.grad.clone()
    head.zero_grad()
    checkpoint(run, hidden, use_reentrant=False).backward()
    assert head.weight.grad.equal(plain)


@SCORERS
@FORMS
def test_a_slice_of_the_logits_gets_the_gradient_of_its_copy_and_the_rest_none(scorer, inplace):
    case = Case("operators_slice", B=2, T=3, V=7, layout="time_slice")
    batch, copy = batch_and_leaf(torch.float32, case)
    whole = batch.logits._base.clone().requires_grad_()
    scored(scorer, batch, (whole * 1)[:, :-1], inplace).backward()
    assert whole.grad[:, :-1].equal(gradient(scorer, batch, copy))
    assert whole.grad[:, -1].eq(0).all()


@SCORERS
def test_a_leaf_is_not_written_over_for_its_storage_would_become_its_gradient(scorer):
    batch, leaf = batch_and_leaf()
    before = leaf.detach().clone()
    with pytest.raises(ValueError, match="inplace=True overwrites .*, got a leaf that requires"):
        scored(scorer, batch, leaf, inplace=True)
    assert leaf.detach().equal(before)
    with torch.no_grad():  # nothing is written
        scored(scorer, batch, leaf, inplace=True)


@SCORERS
def test_a_second_consumer_of_the_logits_adds_its_gradient(scorer):
    batch, leaf = batch_and_leaf()
    logits = leaf * 1
    (scored(scorer, batch, logits) + logits.square().sum()).backward()
    torch.testing.assert_close(leaf.grad, gradient(scorer, batch, leaf) + 2 * leaf.detach())


@SCORERS
@FORMS
def test_gradients_of_repeated_steps_accumulate(scorer, inplace):
    batch, leaf = batch_and_leaf()
    for _ in range(3):
        scored(scorer, batch, leaf * 1, inplace).backward()
    torch.testing.assert_close(leaf.grad, 3 * gradient(scorer, batch, leaf))
