# SPDX-License-Identifier: Apache-2.0
"""What the fused linear needs beside its inputs and gradients: a wave, however many the rows."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import re, sys
import torch, rlkern

N, H, V, wave = map(int, sys.argv[1:])

def status(name):
    return int(re.search(name + r":\\s*(\\d+)", open("/proc/self/status").read())[1])

def step(n, head, wave):
    hidden = torch.ones(1, n, head.shape[1], dtype=head.dtype).requires_grad_()
    token, mask = torch.zeros(1, n, dtype=torch.int64), torch.ones(1, n, dtype=torch.bool)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    rlkern.linear_policy_loss(
        hidden, head, token, torch.ones(1), mask, wave=wave or None
    ).loss.backward()
    gradients = sum(x.grad.numel() * x.element_size() for x in (hidden, head))
    return (status("VmHWM") - before) / 1024 - gradients / 2**20

step(32, torch.ones(64, 8, dtype=torch.bfloat16).requires_grad_(), 16)  # what a first call loads
head = torch.full((V, H), 0.01, dtype=torch.bfloat16).requires_grad_()
print(step(N, head, wave))
"""


def extra_megabytes(N: int, H: int, V: int, wave: int = 0) -> float:
    """Returns the peak of resident memory beyond inputs and gradients; wave 0 is the default."""
    command = [sys.executable, "-c", PROGRAM, *map(str, (N, H, V, wave))]
    # What is freed leaves at once: glibc else keeps a buffer or not, as its threshold has grown.
    freed = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | freed)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_loss_and_all_gradients_at_a_real_vocabulary_need_less_than_a_gigabyte():
    # 1.2 GB of logits and gradient, were they stored; as flat in the rows as the next test says. H
    # is no part of it but for the gradient of the weight, which is summed in float32: 4·H·V bytes,
    # 519 MiB at H = 896. Few rows and a small H, as products of bfloat16 take minutes where they
    # are imitated.
    at_8 = extra_megabytes(2048, 8, 151936)
    assert at_8 + 4 * (896 - 8) * 151936 / 2**20 < 1e9 / 2**20


def test_the_memory_is_flat_in_the_number_of_rows_and_follows_the_wave():
    few, many, wide = (
        extra_megabytes(n, 8, 40000, wave) for n, wave in ((512, 256), (2048, 256), (2048, 1024))
    )
    row_megabytes = 40000 * 2 / 2**20
    assert many - few < 0.1 * (2048 - 512) * row_megabytes
    # The buffer, and a block of it in float32 where the gradient of the weight is summed.
    assert 0.8 < (wide - many) / ((1024 - 256) * row_megabytes) < 2.5
