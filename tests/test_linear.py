# SPDX-License-Identifier: Apache-2.0
"""Losses and scores from hidden states and a head: those of the logits, whatever the waves."""

from dataclasses import replace

import pytest
import torch
from linear_helpers import (
    PATHS,
    SOURCES,
    evaluated,
    loss_by_linear,
    misses,
    problem,
    same_bits,
    scores_by_linear,
)

import rlkern
from rlkern.backends import _load
from rlkern.testing.cases import CASES, Case

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
PLAIN = Case("plain", B=3, T=5, V=37)
PACKED = {"B": 1, "T": 11, "V": 37, "mask": "holes", "packed": True, "correction": True}
VARIANTS = {
    "odd vocabulary": PLAIN,
    "two logits": replace(PLAIN, V=2),
    "rows of temperatures": replace(PLAIN, temperature="rows", correction=True),
    "softcap and kept sets": replace(PLAIN, softcap=2.0, keep="narrow", temperature="rows"),
    "holes": replace(PLAIN, mask="holes"),
    "advantages of sequences": replace(PLAIN, sequence_advantage=True, off_policy=False),
    "packed": Case("packed", **PACKED),
    "packed sequences": Case("packed", **PACKED, sequence_advantage=True, algorithm="gspo"),
    "nothing counted": replace(PLAIN, mask="none_counted"),
    "no rows": replace(PLAIN, B=0),
}
DTYPES = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "float32 head": (torch.bfloat16, torch.float32),
}
FORMULAS = {c.name: replace(c, V=37) for c in CASES if c.about == "objective"}
EVERY_PATH = pytest.mark.parametrize("path", PATHS)
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES)


def results(path, task, backend="cpu", wants=SOURCES, **options):
    with rlkern.use_backend(backend if backend in BACKENDS else "eager"):
        return evaluated(PATHS[path][0], task, wants, **options)


@EVERY_PATH
@EVERY_BACKEND
@EVERY_DTYPE
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_are_those_of_the_logits(
    path, backend, dtype, variant, poisoned_memory
):
    task = problem(VARIANTS[variant], *DTYPES[dtype])
    for wave in (1, 4, None):
        assert not misses(results(path, task, backend, wave=wave), task, PATHS[path][1])


@EVERY_PATH
@pytest.mark.parametrize("variant", ("softcap and kept sets", "packed sequences"))
@pytest.mark.skipif(_load("triton")[1] is not None or torch.cuda.is_available(),
                    reason="needs Triton's interpreter: these problems lie on the CPU")  # fmt: skip
def test_the_triton_kernels_take_waves(path, variant):
    task = problem(VARIANTS[variant])
    with rlkern.use_backend("triton"):
        got = evaluated(PATHS[path][0], task, wave=4)
    assert not misses(got, task, PATHS[path][1])


@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_is_that_of_the_logits_in_waves_of_sequences_and_in_shorter_ones(name):
    task = problem(FORMULAS[name])
    for wave in (2, 5, None):  # a sequence in two waves, a wave of one sequence, all in one
        got = results("loss", task, wave=wave)
        assert not misses(got, task, PATHS["loss"][1])


@EVERY_PATH
@EVERY_DTYPE
@pytest.mark.parametrize("wanted", SOURCES)
def test_each_gradient_alone_has_the_bits_it_has_among_all(path, dtype, wanted):
    task = problem(PLAIN, *DTYPES[dtype])
    alone = results(path, task, wants=(wanted,), wave=4)
    together = results(path, task, wave=4)
    assert set(alone) == {n for n in together if not n.startswith("grad_") or n[5:] == wanted}
    assert same_bits(alone, {name: together[name] for name in alone})


@EVERY_PATH
@EVERY_DTYPE
@pytest.mark.parametrize("added", ((), ("bias",), ("lora_a", "lora_b")), ids=len)
def test_a_head_may_lack_what_it_does_not_need(path, dtype, added):
    sources = "hidden", "weight", *added
    task = problem(PLAIN, *DTYPES[dtype], sources=sources)
    got = results(path, task, wants=sources, wave=4)
    assert not misses(got, task, PATHS[path][1], wants=sources)


@EVERY_PATH
def test_an_upstream_gradient_scales_all_gradients(path):
    task = problem(PLAIN)
    got = results(path, task, factor=-2.5)
    assert not misses(got, task, PATHS[path][1], factor=-2.5)


@EVERY_PATH
@EVERY_DTYPE
def test_nothing_is_made_where_nothing_is_wanted_and_two_runs_are_equal(path, dtype):
    task = problem(PLAIN, *DTYPES[dtype])
    first, again = (results(path, task, wave=4) for _ in range(2))
    assert same_bits(first, again)
    values = results(path, task, wants=(), wave=4)
    assert same_bits(values, {name: first[name] for name in values})


@pytest.mark.parametrize("algorithm", ("grpo", "gspo", "gmpo"))
@EVERY_BACKEND
@EVERY_DTYPE
def test_the_loss_has_the_bits_of_the_logits_path_on_the_same_logits(algorithm, backend, dtype):
    task = problem(replace(PLAIN, V=130, algorithm=algorithm), *DTYPES[dtype], H=24)
    batch, sources = task.batch, task.sources
    counted = torch.where(batch.mask.unsqueeze(-1), sources["hidden"], 0)
    padded = torch.nn.functional.pad(counted.reshape(-1, 24), (0, 0, 0, 1))  # 16 rows
    head = sources["weight"]
    logits = torch.mm(padded.to(head.dtype), head.t())[:15].reshape(3, 5, 130)
    for wave in (3, None):
        with rlkern.use_backend(backend):
            made = rlkern.linear_policy_loss(
                sources["hidden"], head, batch.token, batch.advantage, batch.mask, wave=wave,
                **batch.rows, **task.objective,
            )  # fmt: skip
            expected = rlkern.policy_loss(
                logits, batch.token, batch.advantage, batch.mask, **batch.rows, **task.objective
            )
        assert torch.equal(made.loss, expected.loss)
        assert torch.equal(made.metrics, expected.metrics)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("algorithm", ("grpo", "gspo"))
def test_a_row_does_not_depend_on_the_size_of_the_waves_or_on_the_rows_around_it(dtype, algorithm):
    case = Case("rows", B=8, T=9, V=301, mask="full", algorithm=algorithm)
    task = problem(case, *DTYPES[dtype], H=48)
    weight = torch.full((8, 9), 0.1)

    def rows_of(batch_rows, wave):
        leaf = task.sources["hidden"][batch_rows].clone().requires_grad_()
        b, head = task.batch, task.sources["weight"]
        picked = {n: x[batch_rows] for n, x in b.rows.items() if x is not None}
        loss = rlkern.linear_policy_loss(
            leaf, head, b.token[batch_rows], b.advantage[batch_rows], b.mask[batch_rows],
            weight=weight[batch_rows], wave=wave, **picked, **task.objective,
        ).loss  # fmt: skip
        scores = rlkern.linear_token_logprob(leaf, head, b.token[batch_rows], wave=wave)
        grads = (torch.autograd.grad(x, leaf)[0] for x in (loss, scores.entropy.sum()))
        return [*(x.detach() for x in scores), *grads]

    everything = rows_of(slice(None), None)
    for wave in (1, 7, 16, 40, 71):
        assert all(map(torch.equal, rows_of(slice(None), wave), everything))
    for some in (slice(3, 4), slice(1, 6), [5, 0, 7]):
        parts = [x[some] for x in everything]
        assert all(map(torch.equal, rows_of(some, None), parts))


def test_sums_over_waves_are_kept_in_float32():
    # Of two tokens with p = 0.5 each row adds ±0.5·h to the gradient of either weight: a large
    # contribution that is taken back by the last rows would swallow the small ones in bfloat16.
    N, small = 64, 2.0**-9
    hidden = torch.full((N, 1), small)
    hidden[0], hidden[-1] = 1.0, -1.0
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    out = rlkern.linear_token_logprob(
        hidden.bfloat16(), weight, torch.ones(N, dtype=torch.int64), bias=bias, wave=1
    )
    # 1 + 2⁻⁹ is no bfloat16 number, and neither is the bias' sum of these.
    upstream = torch.full((N,), small)
    upstream[0], upstream[-1] = 1.0, -1.0
    upstream_of_weight = torch.ones(N)
    (grad,) = torch.autograd.grad(out.logprob @ upstream_of_weight, weight, retain_graph=True)
    assert grad.flatten().tolist() == [-0.5 * small * (N - 2), 0.5 * small * (N - 2)]
    (grad,) = torch.autograd.grad(out.logprob @ upstream, bias)
    assert grad.tolist() == [-0.5 * small * (N - 2), 0.5 * small * (N - 2)]


def test_the_gradients_of_tied_embeddings_add_up():
    torch.manual_seed(0)
    batch = problem(PLAIN).batch

    def gradient(fused):
        table = torch.linspace(-1, 1, 37 * 6).reshape(37, 6).sin().requires_grad_()
        hidden = torch.nn.functional.embedding(batch.token.clamp(0, 36), table).tanh()
        rows = (batch.token, batch.advantage, batch.mask)
        if fused:
            rlkern.linear_policy_loss(hidden, table, *rows, wave=4).loss.backward()
        else:
            rlkern.policy_loss(hidden @ table.t(), *rows).loss.backward()
        return table.grad

    torch.testing.assert_close(gradient(True), gradient(False))


@EVERY_PATH
@pytest.mark.parametrize("variant", ("softcap and kept sets", "packed sequences"))
def test_gradients_are_those_of_finite_differences(path, variant):
    task = problem(VARIANTS[variant]).widened()
    names = tuple(task.sources)
    mask = task.batch.mask.unsqueeze(-1)
    task.sources["hidden"].nan_to_num_(0.0)

    def value(*tensors):
        outputs = PATHS[path][0](task, dict(zip(names, tensors)), wave=4)
        return outputs["loss"]

    leaves = [x.clone().requires_grad_() for x in task.sources.values()]
    assert mask.any() and torch.autograd.gradcheck(value, leaves, fast_mode=True)


@EVERY_PATH
def test_double_backward_raises(path):
    task = problem(PLAIN)
    leaves = task.leaves()
    loss = PATHS[path][0](task, leaves)["loss"]
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss, leaves["hidden"], create_graph=True)


def test_what_is_wanted_is_what_requires_a_gradient_when_the_loss_is_made():
    task = problem(PLAIN)
    with torch.no_grad():
        assert not loss_by_linear(task, task.leaves())["loss"].requires_grad
        assert not scores_by_linear(task, task.leaves())["loss"].requires_grad
    leaves = task.leaves(("bias",))
    loss_by_linear(task, leaves)["loss"].backward()
    assert [name for name, x in leaves.items() if x.grad is not None] == ["bias"]
