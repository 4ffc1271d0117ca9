# SPDX-License-Identifier: Apache-2.0
"""Bytes the Triton kernels move, counted in the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from rlkern.backends import triton as kernels  # noqa: E402
from rlkern.backends.eager.token_logprob import Softmax, Statistics, Upstream  # noqa: E402
from rlkern.backends.eager.token_objective import Objective, Rows  # noqa: E402
from rlkern.ops.group_advantage import group_segments  # noqa: E402
from rlkern.testing.traffic import traffic  # noqa: E402

pytestmark = pytest.mark.skipif(
    not kernels.INTERPRETED, reason="counts accesses of interpreted kernels"
)
ROOT = Path(__file__).resolve().parents[1]
OBJECTIVE = Objective("ppo_clip", "token", "k3", (0.2, 0.2, 0.0, 0.0), 0.1, 0.01)


def test_every_kernel_moves_the_bytes_of_the_pass_table():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.passes"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "policy_loss and gradient" in run.stdout and "GSPO" in run.stdout


def batch(V, B=2, T=3):
    """Returns a strided view of logits, tokens, a weight with gaps, and a vector."""
    logits = torch.randn(B, T + 1, V)[:, :-1]
    weight = (torch.arange(B * T) % 3 != 1).float().reshape(B, T)
    return logits, torch.randint(0, V, (B, T)), weight, torch.full((B, T), -2.0)


def backward(logits, token, mask, x, grad):
    """Writes the gradient of what token_logprob returns, from statistics of any value."""
    statistics, upstream = Statistics(x, x, x), Upstream(x, x, x)
    kernels.token_logprob_backward(logits, token, mask, Softmax(), statistics, upstream, grad)


def once_and_the_token_twice(V, token, weight):
    """Returns how often each element of a gradient is written: the token's after the sweep."""
    own = torch.nn.functional.one_hot(token, V) * (weight != 0).unsqueeze(-1)
    return 1 + own


@pytest.mark.parametrize("V", [21, 1024, 8193])
def test_each_gradient_element_is_written_once_and_nothing_out_of_bounds(V):
    logits, token, weight, x = batch(V)
    expected = once_and_the_token_twice(V, token, weight)
    grad = torch.empty(logits.shape)
    with traffic() as moved:
        kernels.policy_loss(logits, token, Rows(x, weight, x, x), Softmax(), OBJECTIVE, grad)
    assert (moved.times_stored(grad) == expected).all() and moved.outside == 0
    grad = torch.empty(logits.shape)
    with traffic() as moved:
        backward(logits, token, weight != 0, x, grad)
    assert (moved.times_stored(grad) == expected).all() and moved.outside == 0


@pytest.mark.parametrize("V", [21, 8193])
def test_a_row_of_weight_zero_is_not_read_and_its_gradient_is_zero(V):
    logits, token, weight, x = batch(V)
    logits[weight == 0] = torch.nan
    token[weight == 0] = -100
    grad = torch.full(logits.shape, torch.nan)
    with traffic() as moved:
        rows, softmax = Rows(x, weight, x, x, x), Softmax(x.neg())
        loss, metrics = kernels.policy_loss(logits, token, rows, softmax, OBJECTIVE, grad)
    read = moved.times_loaded(logits)
    assert (read[weight == 0] == 0).all() and (read[weight != 0] > 0).all()
    assert (moved.times_loaded(x)[weight == 0] == 0).all()
    assert (grad[weight == 0] == 0).all() and not grad.isnan().any()
    assert loss.isfinite() and metrics.isfinite().all()


def test_a_gradient_in_place_leaves_what_lies_between_the_rows_alone():
    logits, token, weight, x = batch(8193)
    with traffic() as moved:
        kernels.policy_loss(logits, token, Rows(x, weight, x, x), Softmax(), OBJECTIVE, logits)
    whole = torch.empty(0).set_(logits.untyped_storage(), 0, (2, 4, 8193))
    stored = moved.times_stored(whole)
    assert (stored[:, :-1] == once_and_the_token_twice(8193, token, weight)).all()
    assert (stored[:, -1] == 0).all() and moved.outside == 0
    assert (moved.times_loaded(whole)[:, -1] == 0).all()


def test_the_kernels_without_a_vocabulary_touch_each_element_once_and_nothing_else():
    x, weight = torch.randn(1, 700), torch.ones(1, 700)
    bias, decay = torch.randn(2, 1100), torch.rand(2, 1100)
    reward, group = torch.randn(300), torch.arange(300) % 2
    order, offset = group_segments(group)
    with traffic() as moved:
        out = kernels.token_objective(x, x, Rows(x, weight, x, x), None, OBJECTIVE)
        scan = kernels.reverse_scan(bias, decay)
        advantage = kernels.group_advantage(reward, order, offset, "normalized", 1e-4, 1)
    for written in (*out, scan, advantage):
        assert (moved.times_stored(written) == 1).all()
    assert moved.bytes_loaded(bias) + moved.bytes_loaded(decay) == 2 * bias.numel() * 4
    assert moved.outside == 0


def test_an_access_out_of_bounds_is_seen():
    logits, token, weight, x = batch(21, B=1, T=1)
    memory = bytearray(4 * 64)  # what the kernel writes too far still lands here
    short = torch.frombuffer(memory, dtype=torch.float32, count=20).reshape(1, 1, 20)
    with traffic() as moved:
        backward(logits, token, None, x, short)
    assert moved.outside == 1
