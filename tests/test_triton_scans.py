# SPDX-License-Identifier: Apache-2.0
"""The forms of the Triton scans: one order of steps in all of them, and what each reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import rlkern  # noqa: E402
from rlkern.backends import eager as reference
from rlkern.backends import triton as kernels  # noqa: E402
from rlkern.backends.triton import _scan  # noqa: E402
from rlkern.backends.triton._scan import BLOCK
from rlkern.testing.traffic import traffic  # noqa: E402

pytestmark = pytest.mark.skipif(not kernels.INTERPRETED, reason="looks into the interpreter")
NUMBERS = torch.tensor([0.99, 0.9], dtype=torch.float64)


def steps(*shape):
    """Returns reward, value and mask; NaN wherever nothing counts."""
    random = torch.Generator().manual_seed(len(shape))
    mask = torch.rand(shape, generator=random) < 0.7
    reward, value = torch.randn(2, *shape, generator=random)
    return reward.masked_fill(~mask, torch.nan), value.masked_fill(~mask, torch.nan), mask


def test_a_padded_row_has_the_bits_it_has_packed(poisoned_memory):
    reward, value, mask = steps(17, 33)
    rates = torch.rand(2, 17, dtype=torch.float64)
    bootstrap = torch.randn(17)
    padded = kernels.gae(reward, value, mask, rates, bootstrap)
    some = torch.tensor([0, 15, 16])
    flat = (x[some].flatten() for x in (reward, value, mask))
    bounds = torch.arange(4) * 33
    packed = kernels.gae(*flat, rates[:, some], bootstrap[some], bounds)
    for x, y in zip(packed, padded):
        assert x.view(3, 33).equal(y[some]) and y.isfinite().all()


@pytest.mark.parametrize("bounds", ([0, 5, 5, 3500], None), ids=("packed", "padded"))
def test_a_sequence_in_parts_has_the_bits_of_a_whole_one(bounds, monkeypatch, poisoned_memory):
    reward, value, mask = steps(*((3500,) if bounds else (1, 3500)))
    mask[..., 1000:2100] = False  # a hole that begins in one block and ends some blocks later
    mask[..., 3200:] = False
    bounds = torch.tensor(bounds) if bounds else None
    bootstrap = torch.randn(1 if bounds is None else 3)
    arguments = (reward, value, mask, NUMBERS, bootstrap, bounds)
    whole = kernels.gae(*arguments)
    monkeypatch.setattr(_scan, "LONG", 2000)
    assert _scan.plan(reward, bounds).owners.owner is not None
    parts = kernels.gae(*arguments)
    assert all(x.equal(y) for x, y in zip(parts, whole))
    oracle = reference.gae(
        reward.double(), value.double(), mask, NUMBERS, bootstrap.double(), bounds
    )
    for x, exact in zip(parts, oracle):
        torch.testing.assert_close(x.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "B,T,parts,reads", ((17, 40, False, 1), (1, 1100, False, 1), (1, 1100, True, 2))
)
def test_each_step_is_read_as_often_as_its_form_says(B, T, parts, reads, monkeypatch):
    monkeypatch.setattr(_scan, "LONG", 64 if parts else 1 << 20)
    bias, decay = torch.rand(2, B, T).unbind()
    reward, value, mask = steps(B, T)
    with traffic() as moved:
        x = kernels.reverse_scan(bias, decay)
        advantage, target = kernels.gae(reward, value, mask, NUMBERS)
    assert moved.outside == 0
    assert all((moved.times_loaded(y) == reads).all() for y in (bias, decay))
    assert all((moved.times_stored(y) == 1).all() for y in (x, advantage, target))
    # A lane that holds a step that counts reads all of its steps, and any other none.
    lanes = mask.view(B, -1, 4).any(2, keepdim=True).expand(B, -1, 4).reshape(B, T)
    assert not lanes.all()
    assert moved.times_loaded(reward).equal(reads * lanes.long())
    # In parts each block also looks for the value that follows it.
    assert (moved.times_loaded(value) - reads * lanes.long()).sum() <= parts * T // BLOCK


def test_the_gradient_of_a_long_scan_is_that_of_the_formula(monkeypatch):
    monkeypatch.setattr(_scan, "LONG", 64)
    inputs = torch.rand(2, 1, 1100).requires_grad_()
    grads = []
    for backend, x in (("triton", inputs), ("eager", inputs.detach().double().requires_grad_())):
        with rlkern.use_backend(backend):
            rlkern.reverse_scan(*x).square().sum().backward()
        grads.append(x.grad.double())
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


LAYOUTS = """
import re, sys, torch
from rlkern.backends import triton as kernels
from rlkern.testing.aot import compiling
numbers = torch.full((2,), 0.9, dtype=torch.float64)
with compiling(sys.argv[1]) as compiled:
    for T in (7, 2000, 20000):
        x = torch.zeros(2, T)
        kernels.reverse_scan(x, x)
        kernels.gae(x, x, x == 0, numbers)
for name, kernel in compiled:
    text = kernel.asm["ttgir"]
    scans = re.findall(r'"tt.scan".*?-> \\(?tensor<32x[fi]32, (#\\w+)>', text, re.S)
    for layout in set(scans):
        print(name, re.search(rf"^{layout} = (.*)$", text, re.M)[1], sep="|")
"""


@pytest.mark.parametrize("target", ("sm_80", "sm_90", "sm_100", "gfx942"))
def test_every_form_scans_one_lane_after_another(target):
    env = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LAYOUTS, target],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert sorted(name for name, _ in lines) == ["gae_kernel"] * 4 + ["reverse_scan_kernel"] * 4
    (layout,) = {layout for _, layout in lines}
    threads = 64 if target == "gfx942" else 32
    assert f"sizePerThread = [1], threadsPerWarp = [{threads}], warpsPerCTA = [1]" in layout
