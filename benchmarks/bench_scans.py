# SPDX-License-Identifier: Apache-2.0
"""Advantages: GAE by the scan and group-relative rewards, against what trainers run."""

import pytest
import torch

import rlkern
from benchmarks.baselines import python_loop_gae

SHAPES = {"8x4096": (8, 4096), "8192x1024": (8192, 1024)}


@pytest.fixture(params=SHAPES, scope="module")
def values(request):
    random = torch.Generator().manual_seed(0)
    reward, value = (torch.randn(SHAPES[request.param], generator=random) for _ in range(2))
    return request.param, reward, value, torch.ones_like(reward, dtype=torch.bool)


def test_rlkern_gae(benchmark, values):
    name, reward, value, mask = values
    benchmark.group = f"gae {name}"
    run = lambda: rlkern.gae(reward, value, mask, discount=0.99, gae_lambda=0.95)  # noqa: E731
    benchmark.pedantic(run, rounds=20, warmup_rounds=2)


def test_eager_gae(benchmark, values):
    name, reward, value, mask = values
    benchmark.group = f"gae {name}"

    def run():
        with rlkern.use_backend("eager"):
            rlkern.gae(reward, value, mask, discount=0.99, gae_lambda=0.95)

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)


def test_python_loop_gae(benchmark, values):
    name, reward, value, _ = values
    benchmark.group = f"gae {name}"
    benchmark.pedantic(
        lambda: python_loop_gae(reward, value, 0.99, 0.95), rounds=2, warmup_rounds=1
    )


def _advantage(benchmark, backend: str) -> None:
    benchmark.group = "group_advantage 65536"
    random = torch.Generator().manual_seed(0)
    reward, group = torch.rand(65536, generator=random), torch.arange(65536) // 8

    def run():
        with rlkern.use_backend(backend):
            rlkern.group_advantage(reward, group)

    benchmark.pedantic(run, rounds=20, warmup_rounds=2)


def test_rlkern_group_advantage(benchmark):
    _advantage(benchmark, rlkern.backend_name("group_advantage"))


def test_eager_group_advantage(benchmark):
    _advantage(benchmark, "eager")
