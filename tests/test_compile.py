# SPDX-License-Identifier: Apache-2.0
"""The public functions under torch.compile(fullgraph=True): the bits of the plain call."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern.testing.cases import Batch, Case, make_batch

TERMS = {"kl_coef": 0.3, "entropy_coef": 0.2, "kl_estimator": "k2"}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Compiles anew in every test."""
    torch._dynamo.reset()


def policy_loss(batch: Batch, logits, inplace=False, **options):
    return rlkern.policy_loss(
        logits * 1, batch.token, batch.advantage, batch.mask, inplace=inplace,
        **{**batch.rows, **batch.softmax, **TERMS, **options},
    )  # fmt: skip


def gspo(batch: Batch, logits, inplace=False):
    return policy_loss(batch, logits, inplace, algorithm="gspo")


def every_option(batch: Batch, logits, inplace=False):
    counted = batch.mask.float()
    return policy_loss(
        batch, logits, inplace, level="sequence", kl_estimator="level_k3", kl_max=0.5,
        log_ratio_min=-0.1, log_ratio_max=0.1, penalty=0.3 * counted,
        entropy_weight=counted / counted.sum(), nll_weight=0.2 * counted,
    )  # fmt: skip


def kept_set(batch: Batch, logits):
    rows = batch.token.unsqueeze(-1)
    return policy_loss(batch, logits, keep=torch.cat([rows, 2 - rows.sign()], -1), softcap=2.0)


def packed_gspo(batch: Batch, logits):
    B, T = batch.token.shape
    cu_seqlens = torch.arange(0, B * T + 1, T)
    rows = {name: x.flatten() for name, x in batch.rows.items() if x is not None}
    return rlkern.policy_loss(
        logits.flatten(0, 1), batch.token.flatten(), batch.advantage[:, 0],
        batch.mask.flatten(), cu_seqlens=cu_seqlens, algorithm="gspo", **rows, **TERMS,
    )  # fmt: skip


def token_logprob(batch: Batch, logits, inplace=False):
    return rlkern.token_logprob(
        logits * 1, batch.token, temperature=0.7, mask=batch.mask, inplace=inplace
    )


def token_objective(batch: Batch, logits, **options):
    rows = logits.sum(-1)
    return rlkern.token_objective(
        rows, batch.advantage, batch.mask, entropy=rows.abs(), **batch.rows,
        **{**TERMS, **options},
    )  # fmt: skip


def corrections(batch: Batch, logits):
    rows = batch.old_logprob, batch.ref_logprob
    kinds = ("truncate", "sequence_mask", "geometric_mask")
    weights = [rlkern.rollout_correction(*rows, batch.mask, kind=kind) for kind in kinds]
    return *weights, rlkern.rollout_rejection(*rows, batch.mask, over="mean", high=0.2)


def reverse_scan(batch: Batch, logits):
    return (rlkern.reverse_scan(logits, logits.sigmoid()),)


def gae(batch: Batch, logits):
    return rlkern.gae(batch.advantage, batch.ref_logprob, batch.mask, discount=0.9, gae_lambda=0.8)


def returns(batch: Batch, logits):
    reward, ratio, mask = batch.advantage, batch.ref_logprob, batch.mask
    options = {"discount": 0.9, "bootstrap": reward[:, 0]}
    return (
        rlkern.discounted_return(reward, mask, **options),
        rlkern.n_step_return(reward, ratio, mask, n=2, **options),
        rlkern.lambda_return(reward, ratio, mask, **options),
        *rlkern.vtrace(ratio, reward, reward, mask, **options),
        rlkern.retrace(ratio, reward, reward, reward, mask, **options),
    )


def group_advantage(batch: Batch, logits):
    return (rlkern.group_advantage(batch.advantage.flatten(), batch.token.flatten() // 9),)


def values(batch: Batch, logits):
    old, target = batch.ref_logprob, batch.old_logprob
    out = rlkern.value_loss(logits.sum(-1), old, target, batch.mask)
    q, action = logits[:, 0], batch.token[:, 0]
    td = rlkern.td_loss(q, action, old[:, 0], batch.mask[:, 0], logits[:, -1].detach())
    return out.loss, td.loss, td.error


def preferences(batch: Batch, logits):
    total = rlkern.sequence_logprob(-logits.abs().sum(-1), batch.mask)
    ref = total.detach() - 1
    return rlkern.preference_loss(total, total.flip(0), ref, ref)


def token_weight(batch: Batch, logits):
    modes = rlkern.aggregate.MODES
    return tuple(rlkern.aggregate.token_weight(batch.mask, mode) for mode in modes)


def merge_metrics(batch: Batch, logits):
    return (rlkern.merge_metrics([policy_loss(batch, logits).metrics] * 2),)


FUNCTIONS = {
    "policy_loss": policy_loss,
    "policy_loss in place": lambda batch, logits: policy_loss(batch, logits, inplace=True),
    "gspo": gspo,
    "gspo in place": lambda batch, logits: gspo(batch, logits, inplace=True),
    "packed gspo": packed_gspo,
    "every option": every_option,
    "every option in place": lambda batch, logits: every_option(batch, logits, inplace=True),
    "kept set": kept_set,
    "corrections": corrections,
    "token_logprob": token_logprob,
    "token_logprob in place": lambda batch, logits: token_logprob(batch, logits, inplace=True),
    "token_objective": token_objective,
    "token_objective of sequences": lambda b, x: token_objective(b, x, algorithm="gmpo"),
    "reverse_scan": reverse_scan,
    "gae": gae,
    "returns": returns,
    "group_advantage": group_advantage,
    "values": values,
    "preferences": preferences,
    "token_weight": token_weight,
    "merge_metrics": merge_metrics,
}


def batch_of(B=2, T=3):
    return make_batch(Case("compile", B=B, T=T, V=21, temperature="rows"), torch.float32)


def results(function, batch):
    """Returns all outputs, and the gradient of the logits where one arrives."""
    leaf = batch.logits.clone().requires_grad_()
    outputs = function(batch, leaf)
    wanted = [x for x in outputs if x.requires_grad]
    if wanted:
        torch.autograd.backward(wanted, [torch.full_like(x, 0.3) for x in wanted])
    return [*outputs, leaf.grad]


def same(results, expected):
    pairs = zip(results, expected, strict=True)
    return all(x is y or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_compiled_call_has_the_bits_of_the_plain_one_whatever_the_shape(name):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(FUNCTIONS[name], backend=counter, fullgraph=True)
    for B, T in ((2, 3), (3, 4), (5, 7), (4, 9)):
        batch = batch_of(B, T)
        assert same(results(compiled, batch), results(FUNCTIONS[name], batch))
    # One graph for the first shape, one for every other.
    assert counter.frame_count <= 2


@pytest.mark.parametrize("function", (policy_loss, token_objective))
def test_other_coefficients_need_no_other_graph(function):
    counter = CompileCounterWithBackend("aot_eager")

    def run(batch, logits, clip_low, kl_coef, entropy_coef):
        coefficients = {"clip_low": clip_low, "kl_coef": kl_coef, "entropy_coef": entropy_coef}
        coefficients |= {"log_ratio_max": 2 * clip_low, "kl_max": kl_coef}
        return function(batch, logits, **coefficients)[0]

    compiled, batch = torch.compile(run, backend=counter, fullgraph=True), batch_of()
    numbers = ((0.2, 0.3, 0.2), (0.1, 0.03, 0.01), (0.3, 0.7, 0.5), (0.05, 1.5, 0.25))
    losses = [compiled(batch, batch.logits, *coefficients) for coefficients in numbers]
    assert losses == [run(batch, batch.logits, *coefficients) for coefficients in numbers]
    assert len(set(map(float, losses))) == len(numbers)
    assert counter.frame_count <= 2


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++ for the CPU")
@pytest.mark.parametrize("name", ("policy_loss", "policy_loss in place", "token_logprob in place"))
def test_inductor_gives_the_gradient_of_the_plain_call(name):
    batch = batch_of()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True)
    for x, y in zip(results(compiled, batch), results(FUNCTIONS[name], batch), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("function", (policy_loss, token_logprob))
def test_a_head_compiled_with_its_loss_in_place_gives_the_plain_gradient(function):
    batch = batch_of()
    hidden, head = torch.randn(2, 3, 4), torch.nn.Linear(4, 21)

    def step(inplace):
        return sum(x.sum() for x in function(batch, head(hidden), inplace) if x.requires_grad)

    step(False).backward()
    plain = head.weight.grad.clone()
    head.zero_grad()
    torch.compile(step, backend="aot_eager", fullgraph=True)(True).backward()
    torch.testing.assert_close(head.weight.grad, plain)


def test_compiled_in_place_logits_that_another_operation_saved_give_the_right_gradient_or_raise():
    batch = batch_of()

    def step(leaf, inplace):
        logits = torch.tanh(leaf)  # tanh saves its output
        return rlkern.policy_loss(
            logits, batch.token, batch.advantage, batch.mask, inplace=inplace
        ).loss

    leaf = batch.logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(step(leaf, False), leaf)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    try:
        (got,) = torch.autograd.grad(compiled(leaf, True), leaf)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(got, expected)
