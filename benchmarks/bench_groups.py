# SPDX-License-Identifier: Apache-2.0
"""Group-relative advantages against eager, torch.compile and the loop over groups in trainers."""

import os
from collections import defaultdict

import pytest
import torch
from torch import Tensor

import rlkern
from rlkern import sampling
from rlkern.backends.eager.group_advantage import group_advantage, group_segments

SMOKE = "RLKERN_BENCH_SMOKE" in os.environ  # few rewards, nothing compiled: only whether it runs
N = 1024 if SMOKE else 65536
IDS = {
    "sorted groups of 8": torch.arange(N) // 8,
    "shuffled groups of 8": (torch.arange(N) // 8)[
        torch.randperm(N, generator=torch.Generator().manual_seed(0))
    ],
    "64 ids of 1024": torch.arange(N) % 64,
}
REWARD = torch.rand(N, generator=torch.Generator().manual_seed(1))


def python_loop_advantage(reward: Tensor, group: Tensor) -> Tensor:
    """Returns normalized advantages by a dictionary of lists, the form of most trainers."""
    members: dict[int, list[int]] = defaultdict(list)
    for i, g in enumerate(group.tolist()):
        members[g].append(i)
    advantage = torch.empty_like(reward)
    for index in members.values():
        own = reward[index]
        advantage[index] = (own - own.mean()) / (own.std() + 1e-4)
    return advantage


@pytest.fixture(params=IDS, scope="module")
def group(request):
    return request.param, IDS[request.param]


def measure(benchmark, operation: str, name: str, call, rounds: int = 30) -> None:
    benchmark.group = f"{operation} {N} {name}"
    benchmark.pedantic(call, rounds=1 if SMOKE else rounds, warmup_rounds=min(rounds, 3))


def test_rlkern(benchmark, group):
    name, ids = group
    measure(benchmark, "group_advantage", name, lambda: rlkern.group_advantage(REWARD, ids))


def test_eager(benchmark, group):
    name, ids = group
    with rlkern.use_backend("eager"):
        measure(benchmark, "group_advantage", name, lambda: rlkern.group_advantage(REWARD, ids))


def eager_advantage(reward: Tensor, group: Tensor) -> Tensor:
    """Returns normalized advantages by the reference's formula, without the operation."""
    return group_advantage(reward, *group_segments(group), "normalized", 1e-4, 1)


def test_torch_compile(benchmark, group):
    name, ids = group
    torch._dynamo.reset()
    compiled = torch.compile(eager_advantage, backend="eager" if SMOKE else "inductor")
    measure(benchmark, "group_advantage", name, lambda: compiled(REWARD, ids))


def test_python_loop(benchmark, group):
    name, ids = group
    loop = lambda: python_loop_advantage(REWARD, ids)  # noqa: E731
    measure(benchmark, "group_advantage", name, loop, rounds=2)


def test_mixed_groups(benchmark, group):
    name, ids = group
    measure(benchmark, "sampling", name, lambda: sampling.mixed_groups(REWARD, ids))


@pytest.mark.parametrize("refill", (sampling.refill_multiplicity, sampling.refill_index))
def test_refill(benchmark, group, refill):
    name, ids = group
    random = torch.Generator().manual_seed(0)
    measure(benchmark, refill.__name__, name, lambda: refill(REWARD, ids, generator=random))
