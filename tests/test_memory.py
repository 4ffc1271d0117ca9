# SPDX-License-Identifier: Apache-2.0
"""What the fused loss needs beside the logits: vectors of N, never another (N, V)."""

import subprocess
import sys

import pytest
import torch

from rlkern.backends import _load, memory

pytestmark = pytest.mark.skipif(_load("cpu")[1] is not None, reason="no C++ extension")
N, V = 512, 151936
PROGRAM = """
import re, torch, rlkern
N, V = {N}, {V}

def peak_kilobytes():
    # Not getrusage: its peak is that of whoever started this process, too.
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])

class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor, logits):
        return logits.view_as(logits)
    @staticmethod
    def backward(ctx, grad):
        return torch.zeros(()), None

def loss(logits):
    n = logits.shape[1]
    token, mask = torch.zeros(1, n, dtype=torch.long), torch.ones(1, n, dtype=torch.bool)
    keep = torch.arange(1, {K} + 1).expand(1, n, {K}).contiguous() if {K} else None
    rlkern.policy_loss(Identity.apply(anchor, logits), token, torch.ones(1), mask, keep=keep,
                       **{options}).loss.backward()

anchor = torch.zeros((), requires_grad=True)
loss(torch.randn(1, 4, V, dtype=torch.bfloat16))
logits = torch.ones(1, N, V, dtype=torch.bfloat16)
before = peak_kilobytes()
loss(logits)
print(peak_kilobytes() - before)
"""
FORMS = {
    "token level": {},
    "sequence level": {"algorithm": "gspo"},
    "softcap and entropy": {"softcap": 30.0, "entropy_coef": 0.01, "temperature": 0.7},
}


def extra_megabytes(K: int = 0, **options) -> float:
    given = {"N": N, "V": V, "K": K, "options": options}
    program = PROGRAM
    for name, value in given.items():
        program = program.replace(f"{{{name}}}", repr(value))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_in_place_needs_no_memory_of_the_size_of_the_logits(form):
    assert extra_megabytes(inplace=True, **FORMS[form]) < 4


@pytest.mark.parametrize("algorithm", ("grpo", "gspo"))
def test_a_kept_set_needs_memory_of_its_own_size_alone(algorithm):
    K = 1024
    ids_megabytes = N * K * 8 / 2**20
    # The ids themselves, their values being checked once, and their copy for the backward.
    assert extra_megabytes(K, inplace=True, algorithm=algorithm) < 4 * ids_megabytes + 4


def test_the_measurement_sees_a_gradient_buffer():
    logits_megabytes = N * V * 2 / 2**20
    assert extra_megabytes(inplace=False) > 0.9 * logits_megabytes


@pytest.mark.parametrize("size,asked", [((64, 1 << 17), True), ((64, 64), False)])
def test_fresh_memory_asks_for_huge_pages_of_its_own_and_of_nothing_else(monkeypatch, size, asked):
    calls = []

    class Libc:
        def madvise(self, where, length, advice):
            calls.append((where.value, length.value))

    monkeypatch.setattr(memory, "_MADV_HUGEPAGE", 14)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Libc())
    x = memory.fresh(size, torch.empty(0))
    assert bool(calls) == asked
    for where, length in calls:
        end = x.data_ptr() + x.numel() * x.element_size()
        assert where % memory._HUGE == length % memory._HUGE == 0
        assert x.data_ptr() <= where and where + length <= end
        assert length > x.numel() * x.element_size() - 2 * memory._HUGE
