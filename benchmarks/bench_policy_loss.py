# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient of N rows of V logits, against a memcpy of the logits."""

import os

import pytest
import torch

import rlkern
from rlkern.testing import baselines
from rlkern.testing.timed_inputs import GSPO, SOFTCAP, Inputs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# {V: N}, at most 10⁸ logits. V = 21 is the fast tier of make train, the others are vocabularies of
# models: GPT-2's 50 257, Qwen's 151 936, Gemma's 262 144. 129 920 is no multiple of 1 024.
ROWS = {
    21: 1920, 1000: 8192, 4096: 8192, 32000: 2048, 50257: 1024, 129920: 512, 151936: 512,
    262144: 256,
}  # fmt: skip
SMOKE = "RLKERN_BENCH_SMOKE" in os.environ  # a few rows, nothing compiled: only whether it runs
SIZES = {f"{n}x{v}": (n, v) for v, n in ((v, 8 if SMOKE else n) for v, n in ROWS.items())}
MAIN = [name for name, (n, v) in SIZES.items() if v == 151936]


@pytest.fixture(scope="module")
def inputs(request):
    size, dtype = request.param
    made = Inputs(*SIZES[size], DTYPES[dtype])
    made.group = f"policy_loss {size} {dtype}"
    return made


def for_sizes(sizes):
    cases = [(size, dtype) for size in sizes for dtype in DTYPES]
    return pytest.mark.parametrize("inputs", cases, ids="-".join, indirect=True)


every_size, main_size = for_sizes(SIZES), for_sizes(MAIN)


def measure(benchmark, inputs: Inputs, function, rounds: int = 15, passes: int = 2) -> None:
    """Times function on fresh logits, `rounds` times after one that does not count.

    passes  how often all logits have to be read or written; of a kept set a few are read
    """
    benchmark.group = inputs.group
    benchmark.extra_info["work"] = passes * inputs.logits.nbytes / 1e9
    if inputs.logits.numel() < 1 << 20:
        rounds *= 20
    benchmark.pedantic(function, setup=inputs.reset, rounds=1 if SMOKE else rounds, warmup_rounds=1)


def compiled(loss_function):
    """Returns a baseline under torch.compile, with nothing remembered of other sizes."""
    torch._dynamo.reset()
    return torch.compile(loss_function, backend="eager" if SMOKE else "inductor")


@every_size
def test_what_is_timed_is_right(inputs):
    """The tests before a run have fewer rows: what is wrong at these sizes would have a time. The
    last row of every sequence stands for all, beside eager in float64."""
    inputs.reset()
    inputs.fused(inplace=True)
    leaf = inputs.source[:, -1:].double().requires_grad_()
    rows = (inputs.token, inputs.advantage, inputs.weight, inputs.old, inputs.ref)
    baselines.eager_grpo_loss(leaf, *(x[:, -1:] for x in rows)).backward()
    ours, exact = inputs.logits[:, -1:].double(), leaf.grad
    rtol = 1e-4 if inputs.source.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours, exact, rtol=rtol, atol=1e-5 * exact.abs().max().item())
    inputs.reset()


@every_size
def test_memcpy_of_the_logits(benchmark, inputs):
    target = inputs.source.clone()
    measure(benchmark, inputs, lambda: target.copy_(inputs.source))


@every_size
def test_rlkern_in_place(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.fused(inplace=True))


@every_size
def test_rlkern_into_a_fresh_buffer(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.fused(inplace=False), 7)


@every_size
def test_rlkern_forward_only(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.loss(inputs.logits), passes=1)


@every_size
def test_rlkern_logprob_and_entropy(benchmark, inputs):
    score = lambda: rlkern.token_logprob(inputs.logits, inputs.token)  # noqa: E731
    measure(benchmark, inputs, score, passes=1)


@main_size
def test_rlkern_gspo_in_place(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.fused(inplace=True, **GSPO), passes=3)


@main_size
def test_rlkern_kept_set_in_place(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.fused(inplace=True, keep=inputs.keep), passes=1)


@main_size
def test_rlkern_softcap_in_place(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.fused(inplace=True, softcap=SOFTCAP))


@every_size
def test_eager(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.other(baselines.eager_grpo_loss), 2)


@every_size
def test_torch_compile(benchmark, inputs):
    loss = compiled(baselines.eager_grpo_loss)
    measure(benchmark, inputs, lambda: inputs.other(loss), 2)


@main_size
def test_eager_logprob_and_entropy(benchmark, inputs):
    function = baselines.eager_logprob_and_entropy
    measure(benchmark, inputs, lambda: function(inputs.logits, inputs.token), 2, passes=1)


@main_size
def test_eager_gspo(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.other(baselines.eager_gspo_loss), 2, passes=3)


@main_size
def test_eager_kept_set(benchmark, inputs):
    loss = baselines.eager_kept_set_loss
    measure(benchmark, inputs, lambda: inputs.other(loss, inputs.keep), 2, passes=1)


@main_size
def test_eager_softcap(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.other(baselines.eager_softcap_loss, SOFTCAP), 2)
