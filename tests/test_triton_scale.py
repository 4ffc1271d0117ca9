# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels scale: tensors of any shape, in place or not, and nothing beside them."""

import mmap

import pytest
import torch

pytest.importorskip("triton")
from rlkern.backends import triton as kernels
from rlkern.backends.triton import scale
from rlkern.testing.traffic import traffic

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.mark.parametrize("V", [21, 9000])
def test_scale_multiplies_a_strided_tensor_and_nothing_between_its_rows(V):
    whole = torch.randn(2, 4, V).bfloat16().to(DEVICE)
    before = whole.clone()
    kernels.scale_(whole[:, :-1], torch.tensor(0.3, device=DEVICE))
    assert torch.equal(whole[:, :-1], (before[:, :-1].float() * 0.3).bfloat16())
    assert torch.equal(whole[:, -1], before[:, -1])


@pytest.mark.parametrize("shape", [(), (5,), (9, 1001), (2, 3, 4096), (1, 2, 3, 5)])
def test_scale_takes_any_shape(shape):
    x = torch.randn(shape).bfloat16().to(DEVICE)
    factor = torch.tensor(0.3, device=DEVICE)
    want = (x.float() * 0.3).bfloat16()
    before = x.clone()
    assert torch.equal(kernels.scaled(x, factor), want) and torch.equal(x, before)
    kernels.scale_(x, factor)
    assert torch.equal(x, want)


def test_a_scaled_view_is_that_of_its_elements():
    x = torch.randn(4, 6).to(DEVICE).t()
    factor = torch.tensor(2.0, device=DEVICE)
    assert torch.equal(kernels.scaled(x, factor), 2 * x)


@pytest.mark.skipif(DEVICE == "cuda", reason="counts accesses of interpreted kernels")
def test_programs_that_scale_several_blocks_touch_each_element_once(monkeypatch):
    monkeypatch.setattr(scale, "PROGRAMS", 3)
    monkeypatch.setattr(scale, "multiprocessors", lambda device: 1)
    x = torch.randn(5 * scale.BLOCK + 7)
    with traffic() as moved:
        y = kernels.scaled(x, torch.tensor(1.0))
    assert (moved.times_loaded(x) == 1).all() and (moved.times_stored(y) == 1).all()
    assert torch.equal(x, y) and moved.outside == 0
    for factor, times in ((1.0, 0), (0.5, 1)):
        with traffic() as moved:
            kernels.scale_(x, torch.tensor(factor))
        assert (moved.times_loaded(x) == times).all() and (moved.times_stored(x) == times).all()
    assert torch.equal(x, y / 2)


@pytest.mark.skipif(DEVICE == "cuda", reason="takes address space of the CPU")
def test_rows_far_apart_are_scaled_with_64_bits():
    V, stride = 300, 2**31 + 24
    # An offset that wraps to 32 bits falls before the first row; MAP_NORESERVE is 0x4000 on Linux.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
    memory = torch.frombuffer(mmap.mmap(-1, 4 * (stride + V), flags), dtype=torch.bfloat16)
    far = memory[stride + V :].as_strided((2, 1, V), (stride, V, 1))
    far.fill_(3.0)
    kernels.scale_(far, torch.tensor(0.5))
    assert (far == 1.5).all()
