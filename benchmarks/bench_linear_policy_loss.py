# SPDX-License-Identifier: Apache-2.0
"""Loss and gradients of N rows from hidden states and a head, against its matrix products alone."""

import gc
import os
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import rlkern
from rlkern.testing import baselines
from rlkern.testing import timed_inputs as shared
from rlkern.testing.timed_inputs import GRPO, IMITATED, products_are_native

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SMOKE = "RLKERN_BENCH_SMOKE" in os.environ  # a few rows, nothing compiled: only whether it runs
# Hidden size and vocabulary of Qwen2.5-0.5B; few rows are where a fixed cost would show.
MAIN, FEW = 512, (64, 128)
SECONDS = 5  # of a row
H, V = (16, 1000) if SMOKE else (896, 151936)


def group_of(n: int, dtype: str) -> str:
    """Returns the name of the rows of a size."""
    return f"linear_policy_loss {n}x{H}x{V} {dtype}"


def left_out() -> dict[str, str]:
    """Returns {group: why it is not timed on this processor}."""
    spared = [] if SMOKE else [d for d in DTYPES if not products_are_native(DTYPES[d])]
    return {group_of(n, dtype): IMITATED for n in (MAIN, *FEW) for dtype in spared}


class LinearInputs(shared.LinearInputs):
    """The inputs at the sizes of this file, and what is done with them."""

    def __init__(self, n: int, dtype: torch.dtype):
        super().__init__(n, H, V, "cpu", dtype)

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """Returns what the baselines are given beside the logits."""
        return self.token, self.advantage, self.weight, self.old, self.ref

    def differentiate(self, loss: Tensor, frozen: bool = False) -> Tensor:
        """Makes the gradient of the head unless it is frozen; returns that of the hidden states."""
        gradient, *_ = torch.autograd.grad(
            loss, [self.hidden] if frozen else [self.hidden, self.head]
        )
        return gradient

    def fused(self, frozen: bool = False) -> Tensor:
        """Runs rlkern's loss and gradients; returns that of the hidden states."""
        head = self.head.detach() if frozen else self.head
        loss = rlkern.linear_policy_loss(
            self.hidden, head, self.token, self.advantage, self.mask, old_logprob=self.old,
            ref_logprob=self.ref, weight=self.weight, **GRPO,
        ).loss  # fmt: skip
        return self.differentiate(loss, frozen)

    def by_logits(self, loss_function: Callable[..., Tensor]) -> Tensor:
        """Runs a baseline that stores the logits, as `fused` does rlkern's loss."""
        return self.differentiate(loss_function(self.hidden, self.head, *self.rows))


def eager_loss(hidden: Tensor, head: Tensor, *rows: Tensor) -> Tensor:
    return baselines.eager_grpo_loss(functional.linear(hidden, head), *rows)


class Products:
    """The matrix products that no way around the logits can save, into memory that is touched."""

    def __init__(self, inputs: LinearInputs):
        self.hidden, self.head = inputs.hidden.detach().flatten(0, 1), inputs.head.detach()
        self.logits = self.hidden.new_ones(len(self.hidden), V)
        self.grad_hidden, self.grad_head = torch.ones_like(self.hidden), torch.ones_like(self.head)

    def two(self) -> None:
        """Makes the logits and the gradient of the hidden states."""
        torch.mm(self.hidden, self.head.t(), out=self.logits)
        torch.mm(self.logits, self.head, out=self.grad_hidden)

    def three(self) -> None:
        """Makes the gradient of the head, too."""
        self.two()
        torch.mm(self.logits.t(), self.hidden, out=self.grad_head)


@pytest.fixture(scope="module")
def inputs(request):
    n, dtype = request.param
    group = group_of(n, dtype)
    if group in left_out():
        pytest.skip(left_out()[group])
    gc.collect()
    made = LinearInputs(n, DTYPES[dtype])
    made.group = group
    return made


def for_rows(*numbers: int):
    cases = [(n, dtype) for n in numbers for dtype in DTYPES]
    names = [f"{n}-{dtype}" for n, dtype in cases]
    return pytest.mark.parametrize("inputs", cases, ids=names, indirect=True)


main_rows, every_row = for_rows(MAIN), for_rows(MAIN, *FEW)


def measure(benchmark, inputs: LinearInputs, function, products: int = 3) -> None:
    """Times function for some seconds after one call, whose memory the others take again.

    products  how many products with the head's size cannot be avoided
    """
    benchmark.group = inputs.group
    benchmark.extra_info["work"] = products / 3 * inputs.flops / 1e9
    started = time.perf_counter()
    function()
    rounds = min(max(int(SECONDS / (time.perf_counter() - started)), 3), 9)
    benchmark.pedantic(function, rounds=1 if SMOKE else rounds)


@every_row
def test_what_is_timed_is_right(inputs):
    """The tests before a run have other sizes: what is wrong at these would have a time."""
    expected = inputs.by_logits(eager_loss)
    off = 1e-4 if expected.dtype == torch.float32 else 2e-2
    atol = off * expected.abs().max().item()
    torch.testing.assert_close(inputs.fused(), expected, rtol=off, atol=atol)


@main_rows
def test_three_products(benchmark, inputs):
    measure(benchmark, inputs, Products(inputs).three)


@main_rows
def test_two_products(benchmark, inputs):
    measure(benchmark, inputs, Products(inputs).two, products=2)


@every_row
def test_rlkern(benchmark, inputs):
    measure(benchmark, inputs, inputs.fused)


@main_rows
def test_rlkern_frozen_head(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.fused(frozen=True), products=2)


@main_rows
def test_rlkern_logprob_and_backward(benchmark, inputs):
    def run():
        scores = rlkern.linear_token_logprob(inputs.hidden, inputs.head, inputs.token)
        inputs.differentiate((scores.logprob * inputs.weight).sum())

    measure(benchmark, inputs, run)


@main_rows
def test_eager_logprob_and_backward(benchmark, inputs):
    def run():
        logits = functional.linear(inputs.hidden, inputs.head)
        logprob = baselines.eager_logprob(logits, inputs.token)
        inputs.differentiate((logprob * inputs.weight).sum())

    measure(benchmark, inputs, run)


@every_row
def test_eager(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.by_logits(eager_loss))


@main_rows
def test_torch_compile(benchmark, inputs):
    torch._dynamo.reset()
    loss = torch.compile(eager_loss, backend="eager" if SMOKE else "inductor")
    for T in (2, 3):  # one graph for the first length, one for every other
        rows = [x[:, :T].contiguous() for x in (inputs.hidden, *inputs.rows)]
        inputs.differentiate(loss(rows[0], inputs.head, *rows[1:]))
    measure(benchmark, inputs, lambda: inputs.by_logits(loss))


@main_rows
def test_torch_linear_cross_entropy(benchmark, inputs):
    """Times the supervised loss, which has no ratio, no KL and no metrics."""
    if not hasattr(functional, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    hidden, token = inputs.hidden.flatten(0, 1), inputs.token.flatten()

    def run():
        loss = functional.linear_cross_entropy(hidden, inputs.head, token)
        torch.autograd.grad(loss, [inputs.hidden, inputs.head], retain_graph=True)

    measure(benchmark, inputs, run)


@main_rows
def test_liger_chunked_grpo(benchmark, inputs):
    chunked = pytest.importorskip("liger_kernel.chunked_loss", reason="Liger is not installed")
    loss = chunked.LigerFusedLinearGRPOLoss(beta=GRPO["kl_coef"], compiled=not SMOKE)

    def run():
        value = loss(
            inputs.hidden, inputs.head, inputs.token, inputs.mask.float(), inputs.advantage[:, 0],
            ref_per_token_logps=inputs.ref, old_per_token_logps=inputs.old,
        )[0]  # fmt: skip
        inputs.differentiate(value)

    measure(benchmark, inputs, run)


@main_rows
def test_cut_cross_entropy(benchmark, inputs):
    """Times the portable path of the supervised loss."""
    cut = pytest.importorskip("cut_cross_entropy", reason="cut-cross-entropy is not installed")

    def run():
        loss = cut.linear_cross_entropy(
            inputs.hidden, inputs.head, inputs.token, impl="torch_compile"
        )
        inputs.differentiate(loss)

    measure(benchmark, inputs, run)
