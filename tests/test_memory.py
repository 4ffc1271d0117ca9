# SPDX-License-Identifier: Apache-2.0
"""What the fused loss needs beside the logits: vectors of N, never another (N, V)."""

import subprocess
import sys

PROGRAM = """
import re, torch, rlkern

def peak_kilobytes():
    # Not getrusage: its peak is that of whoever started this process, too.
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])

def loss(logits):
    n = logits.shape[1]
    token, mask = torch.zeros(1, n, dtype=torch.long), torch.ones(1, n, dtype=torch.bool)
    rlkern.policy_loss(logits * 1 if n == 4 else Identity.apply(anchor, logits), token,
                       torch.ones(1), mask, inplace={inplace}).loss.backward()

class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor, logits):
        return logits.view_as(logits)
    @staticmethod
    def backward(ctx, grad):
        return torch.zeros(()), None

anchor = torch.zeros((), requires_grad=True)
loss(torch.randn(1, 4, 151936, requires_grad=True))
logits = torch.ones(1, 512, 151936, dtype=torch.bfloat16)
before = peak_kilobytes()
loss(logits)
print(peak_kilobytes() - before)
"""


def extra_megabytes(inplace: bool) -> float:
    program = PROGRAM.replace("{inplace}", str(inplace))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


def test_the_loss_in_place_needs_no_memory_of_the_size_of_the_logits():
    assert extra_megabytes(inplace=True) < 4


def test_the_measurement_sees_a_gradient_buffer():
    logits_megabytes = 512 * 151936 * 2 / 2**20
    assert extra_megabytes(inplace=False) > 0.9 * logits_megabytes
