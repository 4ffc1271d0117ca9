# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels without a GPU: compiled by nvcc, and run by an emulator on the CPU.

The emulator (tests/cuda_emulator) takes the place of one header, csrc/cuda/machine.cuh, and runs
every thread of a cluster as a fiber. What it cannot show is speed, and what a real GPU would make
of the few instructions in that header.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rlkern
from rlkern import cuda, reference
from rlkern.backends import BackendUnavailable, _load, _resolve
from rlkern.cuda.library import c_int64, load_library, rows_call
from rlkern.reference.token_logprob import Softmax, Upstream
from rlkern.testing.cases import CASES
from rlkern.testing.conformance import applicable, compare, row

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
COMPILER = shutil.which("g++")
KERNELS = {
    "policy_loss_kernel",
    "sum_statistics",
    "token_logprob_forward",
    "token_logprob_backward",
    "scale_kernel",
}
# Registers of a multiprocessor, threads of the largest block.
REGISTERS, THREADS = 65536, 512

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="g++ is not installed")


def forget() -> None:
    """Makes the next use of the cuda backend load its library again."""
    for function in (load_library, _load, _resolve):
        function.cache_clear()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """The library as setup.py builds it, and what ptxas said of each kernel."""
    target = tmp_path_factory.mktemp("cuda") / "_cuda.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLKERN_BUILD", "none")
        patch.setattr(sys, "argv", ["setup.py", "--version"])
        command = runpy.run_path(str(ROOT / "setup.py"))["cuda_command"](target)
    done = subprocess.run([*command, "-Xptxas", "-v"], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return target, done.stderr


@pytest.fixture(scope="module")
def emulated_library(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("emulator")
    flags = "-std=c++17 -O1 -fPIC -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas -Werror"
    include = [f"-I{ROOT / 'tests' / 'cuda_emulator'}", f"-I{ROOT / 'csrc'}"]
    # One source: the emulated machine is one variable.
    everything = folder / "all.cpp"
    everything.write_text("".join(f'#include "{source}"\n' for source in SOURCES))
    command = [str(COMPILER), *flags.split(), *include, "-shared", str(everything)]
    subprocess.run([*command, "-o", str(folder / "emulated.so")], check=True)
    return folder / "emulated.so"


@pytest.fixture
def emulated(emulated_library, monkeypatch):
    """The cuda backend on the CPU."""
    monkeypatch.setenv("RLKERN_CUDA_LIBRARY", str(emulated_library))
    forget()
    yield
    forget()


def compiled(said: str) -> list[tuple[str, str, int]]:
    """Returns (target, kernel, registers) of everything that ptxas compiled; 0 spills in all."""
    found = []
    pattern = (
        r"Compiling entry function '(\S+)' for '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill"
        r" stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    for name, target, *numbers in re.findall(pattern, said, re.S):
        stack, stored, loaded, registers = map(int, numbers)
        kernel = next(k for k in KERNELS if k in name)
        print(f"{target:<7}{kernel:<24}{name[-40:]:<42}registers {registers}")
        assert stack == stored == loaded == 0, (name, target)
        found.append((target, kernel, registers))
    return found


@needs_nvcc
@pytest.mark.slow
def test_no_kernel_spills_registers_and_three_blocks_fit_a_multiprocessor(built):
    found = compiled(built[1])
    assert {target for target, _, _ in found} == {"sm_80", "sm_90", "sm_100"}
    assert {kernel for _, kernel, _ in found} == KERNELS
    variants = len([1 for target, kernel, _ in found if kernel == "policy_loss_kernel"])
    assert variants == 3 * 3 * 2  # targets, dtypes, with and without a softcap
    # A softcap costs the third block.
    enough = [r for _, k, r in found if k == "policy_loss_kernel" and 3 * r * THREADS <= REGISTERS]
    assert len(enough) == variants // 2
    assert all(2 * registers * THREADS <= REGISTERS for _, _, registers in found)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_library_loads_without_a_driver_and_says_what_cuda_says(built, monkeypatch):
    monkeypatch.setenv("RLKERN_CUDA_LIBRARY", str(built[0]))
    forget()
    try:
        assert re.match(r"no GPU that it can use: CUDA error \d+: .*CUDA", cuda.unavailable())
        with (
            pytest.raises(BackendUnavailable, match="'cuda' cannot serve here: no GPU that it can"),
            rlkern.use_backend("cuda"),
        ):
            pass
        x = torch.zeros(1, 1, 8)
        # The checks of a call come before any device.
        with pytest.raises(NotImplementedError, match="takes no kept sets"):
            rows_call("policy_loss", x, x, Softmax(keep=x), None)
    finally:
        forget()


def test_without_its_library_the_backend_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setenv("RLKERN_CUDA_LIBRARY", str(tmp_path / "missing.so"))
    forget()
    assert "RLKERN_BUILD=cuda builds it with nvcc" in cuda.unavailable()
    with pytest.raises(BackendUnavailable, match="its library is not there"):  # noqa: SIM117
        with rlkern.use_backend("cuda"):
            pass
    assert "not cuda on cpu: its library is not there" in rlkern.explain()
    forget()


def test_asked_for_by_the_environment_it_never_falls_back(tmp_path):
    program = "import torch, rlkern; rlkern.token_logprob(torch.zeros(2, 8), torch.zeros(2).long())"
    variables = {"RLKERN_BACKEND": "cuda", "RLKERN_CUDA_LIBRARY": str(tmp_path / "missing.so")}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode
    assert "BackendUnavailable: token_logprob: backend 'cuda' cannot serve" in done.stderr


@needs_compiler
def test_it_serves_only_where_it_is_asked_for(emulated):
    assert rlkern.backend_name("policy_loss") != "cuda"
    assert "not cuda on cpu: asked for by name only" in rlkern.explain()
    with rlkern.use_backend("cuda"):
        assert rlkern.backend_name("policy_loss") == "cuda"
        with pytest.raises(BackendUnavailable, match="takes float32, bfloat16, float16 here"):
            rlkern.backend_name("policy_loss", dtype=torch.float64)
        with pytest.raises(BackendUnavailable, match="has no gae"):
            rlkern.backend_name("gae")
    with rlkern.use_backend("eager"):
        pass


def served(case) -> bool:
    """Returns whether the backend takes a case: no kept sets, and ratios of tokens alone."""
    return case.keep == "none" and rlkern.algorithms()[case.algorithm].level == "token"


def check(operation: str, case, dtype: torch.dtype, device: str) -> None:
    result = compare(operation, case, "cuda", dtype, device)
    line = row("cuda", operation, case, dtype, result)
    print(line)
    assert result.passed, line


@needs_compiler
@pytest.mark.conformance
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operation", ["policy_loss (in place)", "token_logprob"])
def test_the_error_is_at_most_twice_eagers_own(operation, dtype, emulated, poisoned_memory):
    cases = [case for case in CASES if served(case) and applicable(operation, case, dtype)]
    assert cases
    for case in cases:
        check(operation, case, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.conformance
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operation", ["policy_loss", "policy_loss (in place)", "token_logprob"])
def test_a_gpu_computes_what_the_reference_does(operation, dtype):
    if cuda.unavailable():
        pytest.skip(cuda.unavailable())
    for case in CASES:
        if served(case) and applicable(operation, case, dtype):
            check(operation, case, dtype, "cuda")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("V", [999, 1000, 50257])
def test_a_rows_bits_do_not_depend_on_its_address(V, dtype, emulated):
    x = torch.randn(1, 2, V, generator=torch.Generator().manual_seed(1)).to(dtype)
    token, mask = torch.tensor([[V - 1, 5]]), torch.ones(1, 2, dtype=torch.bool)
    results = []
    with rlkern.use_backend("cuda"):
        for offset in range(0, 16 // x.element_size(), 3):
            storage = torch.zeros(offset + 2 * V + 8, dtype=dtype)
            shifted = storage[offset : offset + 2 * V].view(1, 2, V).copy_(x)
            rows = (token, torch.tensor([[0.5, -1.0]]), mask)
            with torch.no_grad():
                scored = rlkern.token_logprob(shifted, token)
            leaf = shifted.requires_grad_()
            out = rlkern.policy_loss(leaf, *rows, entropy_coef=0.1, algorithm="grpo")
            (grad,) = torch.autograd.grad(out.loss, leaf)
            results.append((*scored, out.loss.detach(), out.metrics, grad))
    for other in results[1:]:
        for name, a, b in zip(range(99), results[0], other):
            assert torch.equal(a, b), name


@needs_compiler
def test_rows_before_clusters_must_fit_one_block_and_larger_ones_are_refused(emulated, monkeypatch):
    monkeypatch.setenv("RLKERN_CUDA_EMULATED_DEVICE", "8")  # as small as an A100
    by_name = {case.name: case for case in CASES}
    check("policy_loss", by_name["gpt2"], torch.bfloat16, "cpu")
    token = torch.zeros(1, 1, dtype=torch.int64)
    with (
        rlkern.use_backend("cuda"),
        pytest.raises(RuntimeError, match="a row does not fit the shared memory of this GPU"),
    ):
        rlkern.token_logprob(torch.zeros(1, 1, 151936), token)
    # Without a maximum to find, a row can be cut up: the backward alone takes any.
    x = torch.randn(1, 1, 151936, generator=torch.Generator().manual_seed(2))
    got, expected = torch.empty_like(x), torch.empty_like(x)
    plain, one = Softmax(), torch.ones(1, 1)
    scored = reference.token_logprob(x, token, None, plain)
    for backend, grad in ((cuda, got), (reference, expected)):
        backend.token_logprob_backward(
            x, token, None, plain, scored.statistics, Upstream(one, one, one), grad
        )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-8)


@needs_compiler
def test_the_factor_of_a_loss_reaches_its_gradient(emulated):
    x, token = torch.randn(2, 3, 21), torch.zeros(2, 3, dtype=torch.int64)
    grads = []
    with rlkern.use_backend("cuda"):
        for factor in (1.0, 0.25):
            leaf = x.clone().requires_grad_()
            mask = torch.ones(2, 3, dtype=torch.bool)
            out = rlkern.policy_loss(leaf, token, torch.ones(2, 3), mask)
            (out.loss * factor).backward()
            grads.append(leaf.grad)
        kept = torch.arange(4).expand(2, 3, 4)
        with pytest.raises(
            NotImplementedError, match="policy_loss: the cuda backend takes no kept"
        ):
            rlkern.policy_loss(leaf, token, torch.ones(2, 3), mask, keep=kept)
    assert grads[0].abs().sum() > 0
    assert torch.equal(grads[1], grads[0] * 0.25)


def launch_shape(V: int, element_size: int, clusters: bool) -> tuple[int, int, int]:
    """Returns (blocks per row, threads, bytes of shared memory), as csrc/cuda/shape.h has it."""

    def size(blocks):
        groups = -(-V * element_size // 16)
        return 144 + -(-groups // blocks) * 16

    choices = (1, 2, 4, 8) if clusters else (1,)
    blocks = next((b for b in choices if size(b) <= 75 * 1024), choices[-1])
    threads = next((t for t in (128, 256) if (size(blocks) - 144) // 16 <= 4 * t), 512)
    return blocks, threads, size(blocks)


@needs_compiler
def test_launch_shapes_follow_from_the_length_of_a_row(emulated):
    for V in (1, 7, 1000, 4096, 32000, 50257, 128256, 129920, 151936, 262144):
        for element_size in (2, 4):
            for clusters in (False, True):
                shape = (c_int64 * 3)()
                load_library().rlkern_cuda_shape(V, element_size, clusters, shape)
                assert tuple(shape) == launch_shape(V, element_size, clusters)
    assert launch_shape(151936, 2, True) == (4, 512, 76112)
    assert launch_shape(262144, 4, True)[0] == 8
    # What the largest GPUs give a block; with the 1 KB that the driver takes, three of 228 KB.
    assert launch_shape(262144, 4, True)[2] <= 227 * 1024
    assert 3 * (launch_shape(151936, 2, True)[2] + 1024) <= 228 * 1024
