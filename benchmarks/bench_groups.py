# SPDX-License-Identifier: Apache-2.0
"""Group-relative advantages against eager, torch.compile and the loop over groups in trainers."""

import os
import random
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


def members_of(ids: Tensor) -> dict[int, list[int]]:
    """Returns the samples of each group."""
    members: dict[int, list[int]] = defaultdict(list)
    for i, g in enumerate(ids.tolist()):
        members[g].append(i)
    return members


def python_loop_advantage(reward: Tensor, group: Tensor) -> Tensor:
    """Returns normalized advantages by a dictionary of lists, the form of most trainers."""
    advantage = torch.empty_like(reward)
    for index in members_of(group).values():
        own = reward[index]
        advantage[index] = (own - own.mean()) / (own.std() + 1e-4)
    return advantage


@pytest.fixture(params=IDS, scope="module")
def group(request):
    return request.param, IDS[request.param]


def measure(benchmark, operation: str, name: str, call, rounds: int = 30) -> None:
    benchmark.group = f"{operation} {N} {name}"
    benchmark.pedantic(call, rounds=1 if SMOKE else rounds, warmup_rounds=min(rounds, 3))


def test_what_is_timed_is_right(group):
    """The tests before a run have other sizes: what is wrong at these would have a time."""
    _, ids = group
    advantage = rlkern.group_advantage(REWARD, ids)
    torch.testing.assert_close(advantage, python_loop_advantage(REWARD, ids), rtol=1e-4, atol=1e-5)
    assert torch.equal(sampling.mixed_groups(REWARD, ids), python_loop_mixed(REWARD, ids))


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


def python_loop_mixed(reward: Tensor, ids: Tensor) -> Tensor:
    """Returns the samples whose group's rewards differ, as verl's recipe of DAPO finds them."""
    values, mixed = reward.tolist(), torch.zeros(len(ids), dtype=torch.bool)
    for index in members_of(ids).values():
        mixed[index] = len({values[i] for i in index}) > 1
    return mixed


def python_loop_refill(reward: Tensor, ids: Tensor) -> Tensor:
    """Returns the samples of a batch in which copies of mixed groups stand for the others."""
    values, members = reward.tolist(), members_of(ids)
    mixed = [index for index in members.values() if len({values[i] for i in index}) > 1]
    drawn = random.Random(0).sample(mixed, len(mixed))
    source = mixed + [drawn[i % len(drawn)] for i in range(len(members) - len(mixed))]
    return torch.tensor([i for index in source for i in index])


def test_rlkern_mixed_groups(benchmark, group):
    name, ids = group
    measure(benchmark, "sampling", name, lambda: sampling.mixed_groups(REWARD, ids))


def test_python_loop_mixed_groups(benchmark, group):
    name, ids = group
    measure(benchmark, "sampling", name, lambda: python_loop_mixed(REWARD, ids), rounds=4)


@pytest.mark.parametrize("refill", (sampling.refill_multiplicity, sampling.refill_index))
def test_rlkern_refill(benchmark, group, refill):
    name, ids = group
    draws = torch.Generator().manual_seed(0)
    measure(benchmark, refill.__name__, name, lambda: refill(REWARD, ids, generator=draws))


@pytest.mark.parametrize("name", ("refill_multiplicity", "refill_index"))
def test_python_loop_refill(benchmark, group, name):
    size, ids = group
    measure(benchmark, name, size, lambda: python_loop_refill(REWARD, ids), rounds=4)
