# SPDX-License-Identifier: Apache-2.0
"""Advantages and scans, beside the bytes they must move and what trainers run instead."""

import pytest
import torch

import rlkern
from rlkern.backends import eager as reference
from rlkern.testing.baselines import python_loop_gae

SHAPES = {
    "1x1": (1, 1),
    "8x4096": (8, 4096),
    "512x4096": (512, 4096),
    "8192x1024": (8192, 1024),
    "1x1000000": (1, 10**6),
}
NUMBERS = torch.tensor([0.99, 0.95], dtype=torch.float64)
# Of a step: gae reads reward, value and mask, writes advantage and target; a scan reads two numbers
# and writes one.
GAE_BYTES, SCAN_BYTES = 17, 12
LOOP_STEPS = 4096  # a longer loop takes minutes


@pytest.fixture(params=SHAPES, scope="module")
def values(request):
    random = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, *SHAPES[request.param], generator=random)
    return request.param, reward, value, torch.ones_like(reward, dtype=torch.bool)


def time(benchmark, values, run, rounds=20, kind="gae"):
    benchmark.group = f"{kind} {values[0]}"
    steps = values[1].numel()
    benchmark.extra_info["work"] = steps * (GAE_BYTES if kind == "gae" else SCAN_BYTES) / 1e9
    small = steps < 10**5
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=2, iterations=10 if small else 1)


def check(found, expected):
    """Fails if results differ from float64 by more than sweeps in float32 can."""
    for x, exact in zip(found, expected, strict=True):
        atol = 1e-5 * exact.abs().max().item()
        torch.testing.assert_close(x, exact.to(x.dtype), rtol=1e-4, atol=atol)


def test_what_is_timed_is_right(values):
    """The tests before a run have other sizes: what is wrong at these would have a time."""
    _, reward, value, mask = values
    double = (reward.double(), value.double())
    exact = reference.gae(*double, mask, NUMBERS)
    check(rlkern.gae(reward, value, mask, discount=0.99, gae_lambda=0.95), exact)
    scanned = reference.reverse_scan(*double)
    check([rlkern.reverse_scan(reward, value)], [scanned])


def test_memcpy_of_the_bytes_moved(benchmark, values):
    source = torch.ones(max(values[1].numel() * GAE_BYTES // 2, 1), dtype=torch.uint8)
    target = torch.ones_like(source)
    time(benchmark, values, lambda: target.copy_(source))


def test_rlkern_gae(benchmark, values):
    _, *rows = values
    time(benchmark, values, lambda: rlkern.gae(*rows, discount=0.99, gae_lambda=0.95))


def test_rlkern_gae_into_memory_in_use(benchmark, values):
    """The sweep alone: fresh outputs of many megabytes also cost their page faults."""
    _C = pytest.importorskip("rlkern._C")
    _, *rows = values
    names = ("reward", "value", "mask", "advantage", "target")
    tensors = dict(zip(names, (*rows, *(torch.zeros_like(rows[0]) for _ in range(2)))))
    options = {"bootstrap": None, "cu_seqlens": None, "whitening": None}
    threads = torch.get_num_threads()
    run = lambda: _C.gae(**tensors, coefficients=NUMBERS, threads=threads, **options)  # noqa: E731
    time(benchmark, values, run)


def test_rlkern_gae_whitened(benchmark, values):
    _, *rows = values
    time(benchmark, values, lambda: rlkern.gae(*rows, discount=0.99, whiten=True))


def test_eager_gae(benchmark, values):
    _, *rows = values
    time(benchmark, values, lambda: reference.gae(*rows, NUMBERS), rounds=3)


def test_torch_compile_gae(benchmark, values):
    _, *rows = values
    torch._dynamo.reset()
    compiled = torch.compile(reference.gae)
    time(benchmark, values, lambda: compiled(*rows, NUMBERS), rounds=3)


def test_python_loop_gae(benchmark, values):
    _, reward, value, _ = values
    if reward.shape[1] > LOOP_STEPS:
        pytest.skip("the loop takes minutes")
    time(benchmark, values, lambda: python_loop_gae(reward, value, 0.99, 0.95), rounds=2)


def test_rlkern_reverse_scan(benchmark, values):
    _, bias, decay, _ = values
    time(benchmark, values, lambda: rlkern.reverse_scan(bias, decay), kind="reverse_scan")


def test_eager_reverse_scan(benchmark, values):
    _, bias, decay, _ = values
    run = lambda: reference.reverse_scan(bias, decay)  # noqa: E731
    time(benchmark, values, run, rounds=3, kind="reverse_scan")
