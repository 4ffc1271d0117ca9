# SPDX-License-Identifier: Apache-2.0
"""Losses of values and of preferences, against what trainers run."""

import pytest
import torch
from torch.nn.functional import logsigmoid

import rlkern

VALUES = {"8x4096": (8, 4096), "8192x1024": (8192, 1024)}
PAIRS = (64, 4096)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(function, leaves):
    """Returns a call of function and its backward that leaves no gradient behind."""

    def run():
        function().backward()
        for leaf in leaves:
            leaf.grad = None

    return run


def timed(benchmark, group, function, leaves, rounds=50):
    benchmark.group = group
    benchmark.pedantic(step(function, leaves), rounds=rounds, warmup_rounds=3)


def eager_value_loss(value, old, target, weight):
    """Returns the clipped value loss and the three metrics that trainers log."""
    near = value.clamp(old - 0.2, old + 0.2)
    free, held = (value - target).square(), (near - target).square()
    loss = 0.5 * (weight * torch.maximum(free, held)).sum()
    with torch.no_grad():
        share = (held > free).float().mean()
        explained = 1 - (target - value).var() / target.var()
    return loss, share, explained, value.detach().mean()


@pytest.fixture(params=VALUES)
def values(request):
    shape = VALUES[request.param]
    value, old, target = (normal(*shape, seed=i) for i in range(3))
    mask = torch.ones(shape, dtype=torch.bool)
    weight = torch.full(shape, 1 / mask.numel())
    return f"value_loss {request.param}", value.requires_grad_(), old, target, mask, weight


def agree(function, other, leaves):
    """Fails if two losses or their gradients differ by more than float32 sums do."""
    found = []
    for loss in (function, other):
        value = loss()
        found.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5 * y.abs().max().item())


def test_the_value_loss_that_is_timed_is_right(values):
    _, value, old, target, mask, weight = values
    agree(
        lambda: rlkern.value_loss(value, old, target, mask, weight=weight).loss,
        lambda: eager_value_loss(value, old, target, weight)[0], [value],
    )  # fmt: skip


def test_rlkern_value_loss(benchmark, values):
    group, value, old, target, mask, weight = values
    loss = lambda: rlkern.value_loss(value, old, target, mask, weight=weight).loss  # noqa: E731
    timed(benchmark, group, loss, [value])


def test_eager_value_loss(benchmark, values):
    group, value, old, target, _, weight = values
    timed(benchmark, group, lambda: eager_value_loss(value, old, target, weight)[0], [value], 20)


def test_torch_compile_value_loss(benchmark, values):
    group, value, old, target, _, weight = values
    compiled = torch.compile(eager_value_loss)
    timed(benchmark, group, lambda: compiled(value, old, target, weight)[0], [value])


@pytest.fixture(params=PAIRS)
def pairs(request):
    rows = [normal(request.param, seed=i) for i in range(4)]
    return f"preference_loss {request.param}", [x.requires_grad_(i < 2) for i, x in enumerate(rows)]


def eager_preference_loss(chosen, rejected, ref_chosen, ref_rejected):
    """Returns DPO's loss and the six metrics that trainers log."""
    h, g = chosen - ref_chosen, rejected - ref_rejected
    loss = -logsigmoid(0.1 * (h - g)).mean()
    with torch.no_grad():
        x, y = 0.1 * h, 0.1 * g
        metrics = (x.mean(), y.mean(), (x - y).mean(), (x > y).float().mean())
        return loss, *metrics, chosen.mean(), rejected.mean()


def test_the_preference_loss_that_is_timed_is_right(pairs):
    _, rows = pairs
    ours = lambda: rlkern.preference_loss(*rows).loss  # noqa: E731
    agree(ours, lambda: eager_preference_loss(*rows)[0], rows[:2])


def test_rlkern_preference_loss(benchmark, pairs):
    group, rows = pairs
    timed(benchmark, group, lambda: rlkern.preference_loss(*rows).loss, rows[:2], 300)


def test_rlkern_compiled_preference_loss(benchmark, pairs):
    group, rows = pairs
    compiled = torch.compile(rlkern.preference_loss, fullgraph=True)
    timed(benchmark, group, lambda: compiled(*rows).loss, rows[:2], 300)


def test_eager_preference_loss(benchmark, pairs):
    group, rows = pairs
    timed(benchmark, group, lambda: eager_preference_loss(*rows)[0], rows[:2], 300)


def test_torch_compile_preference_loss(benchmark, pairs):
    group, rows = pairs
    compiled = torch.compile(eager_preference_loss)
    timed(benchmark, group, lambda: compiled(*rows)[0], rows[:2], 300)
