# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels store in 16 bits: the float32 result rounded to nearest even."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from rlkern.backends import triton as kernels  # noqa: E402
from rlkern.backends.eager.token_logprob import Softmax, Statistics, Upstream  # noqa: E402
from rlkern.backends.eager.token_objective import Objective, Rows  # noqa: E402

needs_interpreter = pytest.mark.skipif(
    not kernels.INTERPRETED, reason="a GPU may contract operations differently per dtype"
)
OBJECTIVE = Objective("ppo_clip", "token", "k3", (0.2, 0.28, 0.0, 0.0), 0.1, 0.01)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def batch(V):
    """Returns logits that every dtype holds exactly, a token, a vector, and sets of kept ids."""
    random = torch.Generator().manual_seed(V)
    logits = torch.randn(1, 3, V, generator=random).bfloat16().float()
    x = torch.randn(1, 3, generator=random)
    keep = torch.randperm(V, generator=random)[: 3 * (V // 4)].view(1, 3, -1)
    return logits, torch.randint(0, V, (1, 3), generator=random), x, keep


def loss_gradient(logits, token, x, softmax):
    grad = torch.full_like(logits, torch.nan)
    rows = Rows(1000 * x, x.abs(), x, x + 0.1)
    kernels.policy_loss(logits, token, rows, softmax, OBJECTIVE, grad)
    return grad


def backward_gradient(logits, token, x, softmax):
    grad, upstream = torch.full_like(logits, torch.nan), Upstream(1000 * x, x, x)
    statistics = Statistics(x.abs(), 0 * x + 1, 0 * x + 3)
    kernels.token_logprob_backward(logits, token, None, softmax, statistics, upstream, grad)
    return grad


def scaled_logits(logits, token, x, softmax):
    return kernels.scaled(logits, x[0, 0])


@needs_interpreter
@DTYPES
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("V", [40, 4500])
@pytest.mark.parametrize("result", [loss_gradient, backward_gradient, scaled_logits])
def test_a_stored_element_is_the_nearest_to_the_float32_one(result, V, kept, dtype):
    logits, token, x, keep = batch(V)
    softmax = Softmax(keep=keep if kept else None)
    exact = result(logits, token, x, softmax)
    stored = result(logits.to(dtype), token, x, softmax)
    assert stored.isfinite().all() and stored.count_nonzero() > logits.numel() // 5
    assert torch.equal(stored, exact.to(dtype))
    # Cutting bits off would not have given the same.
    cut = 2 ** (23 - {torch.bfloat16: 7, torch.float16: 10}[dtype])
    truncated = (exact.view(torch.int32) // cut * cut).view(torch.float32)
    assert not torch.equal(stored, truncated.to(dtype))


CONVERSIONS = """
import re, torch
from rlkern.testing.aot import compiling, launch_rows
with compiling("sm_90") as compiled:
    launch_rows(torch.bfloat16, 4096)
    launch_rows(torch.bfloat16, 4096, K=20)
for name, kernel in compiled:
    print(name, *set(re.findall(r"cvt\\S*bf16\\S*\\.f32", kernel.asm["ptx"])))
"""


def test_compiled_kernels_round_to_nearest_even_where_they_store_bfloat16():
    env = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", CONVERSIONS],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    storing = {name for name, *conversions in lines if conversions}
    assert storing == {
        "token_logprob_backward_kernel",
        "kept_token_logprob_backward_kernel",
        "policy_loss_kernel",
        "kept_policy_loss_kernel",
        "scale_kernel",
        "scale_rows_kernel",
    }
    assert all(re.match(r"cvt\.rn\.bf16", x) for _, *conversions in lines for x in conversions)
