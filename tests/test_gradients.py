# SPDX-License-Identifier: Apache-2.0
"""The gradients against finite differences, and against autograd through plain expressions."""

import pytest
import torch
from objective_helpers import STOPPED

import rlkern
from rlkern.aggregate import token_weight
from rlkern.backends import _load
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.backends.eager.token_objective import Rows, token_loss
from rlkern.ops._objective import make_objective
from rlkern.testing.cases import Case, make_batch

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
SOFTMAXES = {
    "plain": {},
    "temperature": {"temperature": "rows"},
    "softcap": {"softcap": 1.5},
    "keep": {"keep": "narrow"},
    "keep without token": {"keep": "without_token"},
    "keep one": {"keep": "one"},
    "minus infinity": {"values": "minus_infinity", "softcap": 1.5},
    "all": {"temperature": "rows", "softcap": 1.5, "keep": "narrow", "mask": "garbage"},
}
EVERY_SOFTMAX = pytest.mark.parametrize("softmax", SOFTMAXES)
FORMULAS = sorted({(a.gate, a.level): name for name, a in rlkern.algorithms().items()}.values())
TERMS = {"kl_coef": 0.3, "entropy_coef": 0.2}


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, poisoned_memory):
    """Runs every test on each backend, in memory that was NaN."""
    with rlkern.use_backend(request.param):
        yield request.param


def batch_and_leaf(**options):
    case = Case("gradients", **{"B": 2, "T": 3, "V": 7, **options})
    batch = make_batch(case, torch.float64).to("cpu", torch.float64)
    return batch, batch.logits.detach().clone().requires_grad_()


def plain_scores(logits, batch):
    """Returns (logprob, entropy, lse, sum_pi_squared) by log_softmax, one row after another."""
    scores = []
    rate = torch.as_tensor(batch.temperature).expand(batch.token.shape)
    for at in batch.mask.nonzero().tolist():
        row, token = logits[tuple(at)], batch.token[tuple(at)].item()
        if batch.softcap is not None:
            row = batch.softcap * torch.tanh(row / batch.softcap)
            row = row.masked_fill(logits[tuple(at)] == -torch.inf, -torch.inf)
        row = row / rate[tuple(at)]
        kept = [] if batch.keep is None else [i for i in batch.keep[tuple(at)].tolist() if i >= 0]
        if kept:
            banned = torch.ones(len(row), dtype=torch.bool)
            banned[[*kept, token]] = False
            row = row.masked_fill(banned, -torch.inf)
        possible = row[row > -torch.inf]
        p = torch.softmax(possible, 0)
        logprob = torch.log_softmax(row, 0)[token]
        scores.append((logprob, -(p * p.log()).sum(), row.logsumexp(0), p.square().sum()))
    columns = [torch.stack(column) for column in zip(*scores)]
    empty = torch.zeros(batch.mask.shape, dtype=torch.float64)
    return [empty.masked_scatter(batch.mask, column) for column in columns]


@EVERY_SOFTMAX
def test_scores_and_gradients_are_those_of_log_softmax(softmax):
    batch, leaf = batch_and_leaf(**SOFTMAXES[softmax])
    plain = leaf.detach().clone().requires_grad_()
    out = rlkern.token_logprob(leaf, batch.token, mask=batch.mask, **batch.softmax)
    expected = plain_scores(plain, batch)
    for got, x in zip(out, expected):
        torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)
    for scores in (out, expected):
        wanted = [x * (i + 1.5) for i, x in enumerate(scores[:3])]
        (wanted[0].square() + wanted[1].square() + wanted[2]).sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad.nan_to_num(0.0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("softmax", [name for name in SOFTMAXES if name != "minus infinity"])
@pytest.mark.parametrize("outputs", ("logprob", "entropy", "lse", "logprob entropy lse"))
def test_the_gradient_of_token_logprob_is_right_when_only_this_output_is_used(softmax, outputs):
    batch, leaf = batch_and_leaf(**{**SOFTMAXES[softmax], "mask": "ragged"})

    def run(logits):
        out = rlkern.token_logprob(logits, batch.token, mask=batch.mask, **batch.softmax)
        return tuple(getattr(out, name) for name in outputs.split())

    assert torch.autograd.gradcheck(run, leaf)


def loss_of(batch, logits, **options):
    return rlkern.policy_loss(
        logits, batch.token, batch.advantage, batch.mask, **batch.rows, **batch.softmax, **options
    ).loss


def plain_loss(batch, logits, name, **options):
    """Returns the same loss by autograd through log_softmax and the formulas themselves."""
    declared = rlkern.algorithms()[name]
    objective = make_objective(declared, options)
    logprob, entropy, *_ = plain_scores(logits, batch)
    weight = token_weight(
        batch.mask, declared.aggregation, cu_seqlens=batch.cu_seqlens, dtype=torch.float64
    )
    others = [getattr(batch, name) for name in Rows._fields[2:]]
    rows = Rows(batch.advantage, weight, *others)
    return token_loss(logprob, entropy, rows, objective, batch.cu_seqlens).sum()


def assert_gradient_is_autograds(options, name, **terms):
    batch, leaf = batch_and_leaf(correction=True, temperature="rows", **options)
    plain = leaf.detach().clone().requires_grad_()
    loss, expected = (
        loss_of(batch, leaf, algorithm=name, **terms),
        plain_loss(batch, plain, name, **terms),
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ("grpo", "gspo", "gspo_token"))
def test_the_gradient_of_the_optional_terms_and_clamps_is_autograds(name):
    options = {"log_ratio_min": -0.1, "log_ratio_max": 0.1, "kl_max": 0.1}
    shape = {"B": 3, "T": 4, "terms": True}
    assert_gradient_is_autograds(shape, name, **TERMS, **options, kl_estimator="level_k3")


@pytest.mark.parametrize("off_policy", (True, False), ids=("off policy", "on policy"))
@pytest.mark.parametrize("packed", (False, True), ids=("padded", "packed"))
@pytest.mark.parametrize("name", FORMULAS)
def test_the_gradient_of_every_formula_is_autograds(name, packed, off_policy):
    shape = {"B": 1, "T": 9, "mask": "holes", "packed": True} if packed else {"B": 3, "T": 4}
    terms = {k: x for k, x in TERMS.items() if k in rlkern.algorithms()[name].defaults}
    assert_gradient_is_autograds({**shape, "off_policy": off_policy}, name, **terms)


@pytest.mark.parametrize("kl_estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("name", ("grpo", "gspo"))
def test_the_gradient_of_every_kl_estimator_is_autograds(name, kl_estimator):
    assert_gradient_is_autograds({"keep": "narrow"}, name, kl_estimator=kl_estimator, **TERMS)


def differentiable(name):
    declared = rlkern.algorithms()[name]
    return declared.gate not in STOPPED and declared.level != "sequence_token"


@pytest.mark.parametrize("name", filter(differentiable, FORMULAS))
def test_the_gradient_of_policy_loss_is_that_of_its_values(name):
    terms = {k: x for k, x in TERMS.items() if k in rlkern.algorithms()[name].defaults}
    batch, leaf = batch_and_leaf(softcap=2.0, temperature="rows", correction=True)
    assert torch.autograd.gradcheck(lambda x: loss_of(batch, x, algorithm=name, **terms), leaf)


@pytest.mark.parametrize("wanted", ("logprob", "entropy", "logprob entropy"))
@pytest.mark.parametrize("name", ("grpo", "gspo", "gmpo"))
def test_the_gradient_of_token_objective_is_right_for_each_input_alone(name, wanted):
    batch, _ = batch_and_leaf(correction=True)
    scores = {"logprob": batch.ref_logprob + 0.1, "entropy": batch.ref_logprob.abs()}

    def run(*leaves):
        inputs = {**scores, **dict(zip(wanted.split(), leaves))}
        return rlkern.token_objective(
            inputs["logprob"], batch.advantage, batch.mask, entropy=inputs["entropy"],
            algorithm=name, **batch.rows, **TERMS,
        ).loss  # fmt: skip

    leaves = [scores[name].clone().requires_grad_() for name in wanted.split()]
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("bias_wanted,decay_wanted", ((True, False), (False, True), (True, True)))
def test_the_gradient_of_reverse_scan_is_right_for_each_input_alone(bias_wanted, decay_wanted):
    bias = torch.randn(3, 5, dtype=torch.float64).requires_grad_(bias_wanted)
    decay = torch.rand(3, 5, dtype=torch.float64)
    decay[1, 2] = 0
    decay.requires_grad_(decay_wanted)
    assert torch.autograd.gradcheck(rlkern.reverse_scan, (bias, decay))
