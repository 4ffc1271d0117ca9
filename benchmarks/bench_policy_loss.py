# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient of GRPO with KL: N rows of V logits, against a memcpy of the logits."""

import pytest
import torch
from torch import Tensor

import rlkern
from benchmarks.baselines import eager_grpo_loss, eager_logprob_and_entropy

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# N·V is what the forward of a small batch leaves; V = 21 is the fast tier of make train.
SIZES = {
    "512x151936": (512, 151936),
    "256x262144": (256, 262144),
    "2048x32000": (2048, 32000),
    "8192x1000": (8192, 1000),
    "1920x21": (1920, 21),
}


class Inputs:
    """Logits whose memory is touched, as an lm_head leaves them, and the vectors beside them."""

    def __init__(self, n: int, v: int, dtype: torch.dtype):
        random = torch.Generator().manual_seed(0)
        self.source = torch.randn(1, n, v, generator=random).to(dtype)
        self.logits = self.source.clone()
        self.token = torch.randint(v, (1, n), generator=random)
        self.advantage = torch.randn(1, n, generator=random)
        self.old = torch.randn(1, n, generator=random) * 0.1 - torch.log(torch.tensor(float(v)))
        self.ref = self.old + 0.1 * torch.randn(1, n, generator=random)
        self.mask = torch.ones(1, n, dtype=torch.bool)
        self.weight = torch.full((1, n), 1.0 / n)

    def reset(self) -> None:
        self.logits.copy_(self.source)

    def non_leaf(self) -> Tensor:
        """Returns the logits as a model hands them over: the output of an operation."""
        return Output.apply(torch.zeros((), requires_grad=True), self.logits)

    def fused(self, inplace: bool) -> Tensor:
        loss = rlkern.policy_loss(
            self.non_leaf(), self.token, self.advantage, self.mask, old_logprob=self.old,
            ref_logprob=self.ref, weight=self.weight, kl_coef=0.04, inplace=inplace,
        ).loss  # fmt: skip
        loss.backward()
        return loss

    def forward_only(self) -> Tensor:
        return rlkern.policy_loss(
            self.logits, self.token, self.advantage, self.mask, old_logprob=self.old,
            ref_logprob=self.ref, weight=self.weight, kl_coef=0.04,
        ).loss  # fmt: skip

    def other(self, loss_function) -> Tensor:
        loss = loss_function(
            self.non_leaf(), self.token, self.advantage, self.weight, self.old, self.ref
        )
        loss.backward()
        return loss


class Output(torch.autograd.Function):
    """Stands for the lm_head: hands out stored logits and takes their gradient, at no cost."""

    @staticmethod
    def forward(ctx, anchor, logits):
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros(()), None


@pytest.fixture(params=[(s, d) for s in SIZES for d in DTYPES], ids="-".join, scope="module")
def inputs(request):
    size, dtype = request.param
    made = Inputs(*SIZES[size], DTYPES[dtype])
    made.group = f"policy_loss {size} {dtype}"
    return made


def measure(benchmark, inputs: Inputs, function, rounds: int) -> None:
    """Times function on fresh logits, `rounds` times after one that does not count."""
    benchmark.group = inputs.group
    if inputs.logits.numel() < 1 << 20:
        rounds *= 20
    benchmark.pedantic(function, setup=inputs.reset, rounds=rounds, warmup_rounds=1)


def test_memcpy_of_the_logits(benchmark, inputs):
    target = inputs.source.clone()
    measure(benchmark, inputs, lambda: target.copy_(inputs.source), 15)


def test_rlkern_in_place(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.fused(inplace=True), 15)


def test_rlkern_into_a_fresh_buffer(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.fused(inplace=False), 7)


def test_rlkern_forward_only(benchmark, inputs):
    measure(benchmark, inputs, inputs.forward_only, 15)


def test_rlkern_logprob_and_entropy(benchmark, inputs):
    measure(benchmark, inputs, lambda: rlkern.token_logprob(inputs.logits, inputs.token), 15)


def test_eager(benchmark, inputs):
    measure(benchmark, inputs, lambda: inputs.other(eager_grpo_loss), 3)


def test_torch_compile(benchmark, inputs):
    torch._dynamo.reset()
    compiled = torch.compile(eager_grpo_loss)
    measure(benchmark, inputs, lambda: inputs.other(compiled), 3)


def test_eager_logprob_and_entropy(benchmark, inputs):
    measure(benchmark, inputs, lambda: eager_logprob_and_entropy(inputs.logits, inputs.token), 3)
