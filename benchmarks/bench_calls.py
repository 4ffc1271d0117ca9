# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient of small batches, where a call costs more than its arithmetic."""

import os

import pytest
import torch

import rlkern
from rlkern.testing import baselines
from rlkern.testing.timed_inputs import Inputs

SMOKE = "RLKERN_BENCH_SMOKE" in os.environ  # nothing compiled: only whether it runs
# Rows × actions, or tokens, of control tasks.
SIZES = {f"{n}x{v}": (n, v) for n, v in ((32, 2), (256, 6), (2048, 18), (4096, 2), (4096, 64))}
every_size = pytest.mark.parametrize("size", SIZES)


class Transitions:
    """n transitions of v actions, one of ten done."""

    def __init__(self, n: int, v: int):
        random = torch.Generator().manual_seed(0)
        self.q, self.next_q = torch.randn(2, n, v, generator=random)
        self.q.requires_grad_()
        self.action = torch.randint(v, (n,), generator=random)
        self.reward = torch.randn(n, generator=random)
        self.done = torch.rand(n, generator=random) < 0.1

    def learn(self, loss_function) -> None:
        """Runs a loss and its gradient."""
        self.q.grad = None
        loss_function(self.q, self.action, self.reward, self.done, self.next_q).backward()


def time(benchmark, group: str, run) -> None:
    """Times a few calls a round, as many rounds as find the machine idle once."""
    benchmark.group = group
    few = {"rounds": 1} if SMOKE else {"rounds": 200, "iterations": 10, "warmup_rounds": 3}
    benchmark.pedantic(run, **few)


def compiled(loss_function):
    """Returns a baseline under torch.compile, with nothing remembered of other sizes."""
    torch._dynamo.reset()
    return torch.compile(loss_function, backend="eager" if SMOKE else "inductor")


def time_policy(benchmark, size: str, run) -> None:
    inputs = Inputs(*SIZES[size], torch.float32)
    time(benchmark, f"calls policy_loss {size}", lambda: run(inputs))


def time_td(benchmark, size: str, loss_function) -> None:
    transitions = Transitions(*SIZES[size])
    time(benchmark, f"calls td_loss {size}", lambda: transitions.learn(loss_function))


@every_size
def test_what_is_timed_is_right(size):
    """The tests before a run have other sizes: what is wrong at these would have a time."""
    transitions, found = Transitions(*SIZES[size]), []
    for loss in (lambda *x: rlkern.td_loss(*x).loss, baselines.eager_td_loss):
        transitions.learn(loss)
        found.append(transitions.q.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6 * found[1].abs().max().item())


@every_size
def test_rlkern_policy_loss(benchmark, size):
    time_policy(benchmark, size, lambda inputs: inputs.fused(inplace=False))


@every_size
def test_eager_policy_loss(benchmark, size):
    time_policy(benchmark, size, lambda inputs: inputs.other(baselines.eager_grpo_loss))


@every_size
def test_torch_compile_policy_loss(benchmark, size):
    loss = compiled(baselines.eager_grpo_loss)
    time_policy(benchmark, size, lambda inputs: inputs.other(loss))


@every_size
def test_rlkern_td_loss(benchmark, size):
    time_td(benchmark, size, lambda *transitions: rlkern.td_loss(*transitions).loss)


@every_size
def test_eager_td_loss(benchmark, size):
    time_td(benchmark, size, baselines.eager_td_loss)


@every_size
def test_torch_compile_td_loss(benchmark, size):
    time_td(benchmark, size, compiled(baselines.eager_td_loss))
