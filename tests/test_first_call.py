# SPDX-License-Identifier: Apache-2.0
"""What the first call of a process is made inside of has no part in the later ones."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch, rlkern

def loss(logits):
    token, mask = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)
    return rlkern.policy_loss(logits, token, torch.ones(1), mask, algorithm="grpo", clip_low=0.1)

first = {
    "nothing": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
with first[sys.argv[1]]():
    loss(torch.zeros(1, 4, 8))
logits = torch.linspace(-1, 1, 32).reshape(1, 4, 8).requires_grad_()
with rlkern.use_backend("eager"):
    print(torch.autograd.grad(loss(logits).loss, logits)[0].tolist())
"""


def after(first: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM, first], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("first", ["inference_mode", "no_grad", "autocast"])
def test_a_gradient_is_the_same_after_whatever_first_call(first):
    assert after(first) == after("nothing")
