# SPDX-License-Identifier: Apache-2.0
"""A row's result has the same bits whatever the batch around it, the form, the threads."""

import math
import os
import subprocess
import sys

import pytest
import torch
from batch_helpers import (
    BACKENDS,
    DTYPES,
    batches,
    each,
    loss_and_gradient,
    packed,
    per_row,
    same_bits,
    scores_and_gradient,
)
from hypothesis import given
from hypothesis import strategies as st

import rlkern
from rlkern.backends import _load
from rlkern.testing.cases import Case, make_batch

NATIVE = pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ extension is not built")
INSTRUCTION_SETS = _load("cpu")[0]._C.isa_names() if "cpu" in BACKENDS else []
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = [pytest.mark.gpu] if DEVICE == "cuda" else []
KERNELS = [
    pytest.param(name, marks=marks)
    for name, marks in {"cpu": [], "triton": ON_GPU}.items()
    if _load(name)[1] is None
]
EVERY = pytest.mark.parametrize("backend", BACKENDS)
LEVELS = pytest.mark.parametrize("name", ("grpo", "gspo", "gspo_token", "gmpo", "vespo"))


@pytest.fixture(scope="module", autouse=True)
def fresh_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@NATIVE
@given(batches(), st.randoms(use_true_random=False))
def test_a_row_does_not_depend_on_the_order_of_the_batch(batch, random):
    order = list(range(len(batch.mask)))
    random.shuffle(order)
    with rlkern.use_backend("cpu"):
        expected = [x[order] for x in per_row(batch)]
        assert same_bits(per_row(each(batch, lambda x: x[order])), expected)


@NATIVE
@given(batches(), st.integers(0, 4))
def test_a_row_does_not_depend_on_how_the_batch_is_split(batch, cut):
    with rlkern.use_backend("cpu"):
        slices = slice(None, cut), slice(cut, None)
        parts = [per_row(each(batch, lambda x, at=at: x[at])) for at in slices]
        assert same_bits([torch.cat(pair) for pair in zip(*parts)], per_row(batch))


@NATIVE
@given(batches(), st.integers(1, 3))
def test_a_row_does_not_depend_on_padding(batch, extra):
    def pad(x):
        garbage = math.nan if x.is_floating_point() else -100
        tail = x.new_full((x.shape[0], extra, *x.shape[2:]), garbage)
        return torch.cat([x, torch.zeros_like(tail) if x is batch.mask else tail], 1)

    padded = each(batch, pad)
    padded.temperature = padded.temperature.nan_to_num(1.0)
    T = batch.mask.shape[1]
    with rlkern.use_backend("cpu"):
        assert same_bits([x[:, :T] for x in per_row(padded)], per_row(batch))
        assert same_bits(loss_and_gradient(padded)[:2], loss_and_gradient(batch)[:2])


@NATIVE
@LEVELS
@given(batches())
def test_packed_rows_give_the_bits_of_padded_ones(name, batch):
    with rlkern.use_backend("cpu"):
        loss, metrics, gradient = loss_and_gradient(batch, algorithm=name)
        got = loss_and_gradient(packed(batch), algorithm=name)
        assert same_bits(got, (loss, metrics, gradient[batch.mask]))
        flat = each(batch, lambda x: x.flatten(0, 1))
        scores = [x.flatten(0, 1) for x in scores_and_gradient(batch)]
        assert same_bits(scores_and_gradient(flat), scores)


@pytest.mark.parametrize("device_backend", KERNELS)
@LEVELS
def test_packed_rows_have_the_gradient_of_padded_ones_in_every_kernel(name, device_backend):
    case = Case("packed", B=3, T=4, V=33, keep="narrow", correction=True, temperature="rows")
    batch = make_batch(case, torch.float32, DEVICE if device_backend == "triton" else "cpu")
    with rlkern.use_backend(device_backend):
        loss, metrics, gradient = loss_and_gradient(batch, algorithm=name)
        got = loss_and_gradient(packed(batch), algorithm=name)
    assert got[2].equal(gradient[batch.mask])
    # Triton sums blocks of tokens, and the padding shifts which tokens share one.
    for x, y in zip(got, (loss, metrics)):
        torch.testing.assert_close(x, y)


@LEVELS
@given(batches(dtypes=(torch.float64,)))
def test_packed_rows_give_the_numbers_of_padded_ones_in_the_reference(name, batch):
    with rlkern.use_backend("eager"):
        loss, metrics, gradient = loss_and_gradient(batch, algorithm=name)
        got = loss_and_gradient(packed(batch), algorithm=name)
    for x, y in zip(got, (loss, metrics, gradient[batch.mask])):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@LEVELS
@EVERY
def test_the_loss_of_a_sequence_does_not_depend_on_the_others(backend, name):
    case = Case("alone", B=4, T=5, V=33, keep="narrow", correction=True, temperature="rows")
    batch, weight = make_batch(case, torch.float32), torch.full((4, 5), 0.125)
    with rlkern.use_backend(backend):
        for i in range(4):
            alone = each(batch, lambda x, i=i: x[i : i + 1])
            others = torch.where(torch.arange(4)[:, None] == i, weight, 0.0)
            whole = loss_and_gradient(batch, others, algorithm=name)
            loss, metrics, gradient = loss_and_gradient(alone, weight[:1], algorithm=name)
            assert same_bits((loss, metrics), whole[:2]) and gradient[0].equal(whole[2][i])


def short_rows(rows, vocabulary, dtype, seed=0):
    """Returns logits and what policy_loss takes beside them."""
    random = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(rows, vocabulary, generator=random)).to(dtype)
    vectors = torch.randn(4, rows, generator=random).to(torch.promote_types(dtype, torch.float32))
    return logits, torch.randint(vocabulary, (rows,), generator=random), vectors


def policy_gradient(logits, token, vectors, **options):
    advantage, old, ref, weight = vectors
    leaf = logits.clone().requires_grad_()
    loss = rlkern.policy_loss(
        leaf, token, advantage, torch.ones_like(weight, dtype=torch.bool),
        old_logprob=old - 1, ref_logprob=ref - 1, weight=weight, kl_coef=0.1, **options,
    ).loss  # fmt: skip
    return torch.autograd.grad(loss, leaf)[0]


@NATIVE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", ({}, {"entropy_coef": 0.1}), ids=str)
@pytest.mark.parametrize("vocabulary", (2, 18, 200))
def test_a_row_among_dozens_has_the_gradient_it_has_alone(vocabulary, options, dtype):
    logits, token, vectors = short_rows(37, vocabulary, dtype)
    with rlkern.use_backend("cpu"):
        together = policy_gradient(logits, token, vectors, **options)
        for i in range(37):
            one = slice(i, i + 1)
            alone = policy_gradient(logits[one], token[one], vectors[:, one], **options)
            assert same_bits([alone], [together[one]])


@NATIVE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", (1, 2, 3, 7))
def test_tokens_of_probability_zero_behind_a_short_row_change_no_bit(vocabulary, dtype):
    logits, token, vectors = short_rows(9, vocabulary, dtype)
    longer = torch.nn.functional.pad(logits, (0, 33 - vocabulary), value=-math.inf)
    with rlkern.use_backend("cpu"):
        short, long = (rlkern.token_logprob(x, token) for x in (logits, longer))
        assert same_bits(short, long)
        grads = [policy_gradient(x, token, vectors) for x in (logits, longer)]
    assert same_bits([grads[0]], [grads[1][:, :vocabulary]])


@NATIVE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neither_threads_nor_a_second_run_change_a_bit(dtype):
    # Enough work for two threads.
    case = Case("threads", B=9, T=13, V=1021, temperature="rows", keep="narrow")
    batch, threads = make_batch(case, dtype), torch.get_num_threads()
    results = []
    with rlkern.use_backend("cpu"):
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            losses = [x for n in ("grpo", "gspo") for x in loss_and_gradient(batch, algorithm=n)]
            results.append((*losses, *scores_and_gradient(batch)))
    torch.set_num_threads(threads)
    assert all(same_bits(result, results[0]) for result in results[1:])


@EVERY
@given(batches())
def test_in_place_gives_the_bits_of_out_of_place(backend, batch):
    with rlkern.use_backend(backend):
        assert same_bits(loss_and_gradient(batch, inplace=True), loss_and_gradient(batch))
        assert same_bits(scores_and_gradient(batch, inplace=True), scores_and_gradient(batch))


@EVERY
@pytest.mark.parametrize("name", ("grpo", "gspo"))
@pytest.mark.parametrize("inplace", (False, True))
def test_logits_that_are_nan_show_in_the_loss_and_in_their_own_row_alone(backend, inplace, name):
    case = Case("nan", B=2, T=3, V=33, mask="full", temperature="rows", softcap=9.0)
    batch = make_batch(case, torch.float32)
    batch.logits[1, 2, 5] = math.nan
    with rlkern.use_backend(backend):
        loss, _, gradient = loss_and_gradient(batch, inplace=inplace, algorithm=name)
        logprob = scores_and_gradient(batch, inplace)[0]
    assert loss.isnan() and logprob.isnan().sum() == 1 and logprob[1, 2].isnan()
    spoiled = [[1, 2]] if name == "grpo" else [[1, 0], [1, 1], [1, 2]]  # or its whole sequence
    assert gradient.isnan().any(-1).nonzero().tolist() == spoiled


NAN_PROGRAM = """
import itertools, torch, rlkern
dtypes = torch.float64, torch.float32, torch.bfloat16, torch.float16
for dtype, V, kept, cap in itertools.product(dtypes, (7, 64, 1021), (False, True), (None, 5.0)):
    for at in {0, V // 2, V - 1}:
        logits = torch.randn(1, 3, V).to(dtype)
        logits[0, 1, at] = torch.nan
        leaf, token = logits.requires_grad_(), torch.tensor([[V - 2, 1, 0]])
        keep = torch.tensor([[[at, 4, 2]] * 3]) if kept else None
        rows, mask = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
        for name in ("ppo", "gspo"):
            leaf.grad = None
            out = rlkern.policy_loss(leaf, token, rows + 1, mask, old_logprob=rows - 2, keep=keep,
                                     softcap=cap, entropy_coef=0.1, algorithm=name)
            out.loss.backward()
            spoiled = leaf.grad.isnan().any(-1)[0].tolist()
            expected = [False, True, False] if name == "ppo" else [True] * 3
            case = dtype, V, kept, cap, at, name, spoiled
            assert out.loss.isnan() and spoiled == expected, case
"""


@NATIVE
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_nan_logits_stay_nan_with_every_instruction_set(isa):
    environment = {**os.environ, "RLKERN_ISA": isa, "RLKERN_BACKEND": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", NAN_PROGRAM], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
