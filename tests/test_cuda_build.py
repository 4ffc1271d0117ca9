# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels as nvcc compiles them, and what is said where they cannot run."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_helpers import forget

import rlkern
from rlkern.backends import BackendUnavailable, cuda
from rlkern.backends.cuda.library import rows_call
from rlkern.backends.eager.token_logprob import Softmax

ROOT = Path(__file__).resolve().parents[1]
KERNELS = {
    "policy_loss_kernel",
    "policy_loss_pipeline",
    "sum_statistics",
    "token_logprob_forward",
    "token_logprob_backward",
    "scale_kernel",
}
# Registers of a multiprocessor; threads of a block, and of the pipeline's, which is alone there.
REGISTERS, THREADS, PIPELINE_THREADS = 65536, 256, 576

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")


def command_of(target: Path, **variables: str) -> list[str]:
    """Returns setup.py's command that builds the library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RLKERN_CUDA_TARGETS", raising=False)
        for name, value in {"RLKERN_BUILD": "none", **variables}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["setup.py", "--version"])
        return runpy.run_path(str(ROOT / "setup.py"))["cuda_command"](target)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """The library as setup.py builds it, and what ptxas said of each kernel."""
    target = tmp_path_factory.mktemp("cuda") / "_cuda.so"
    command = command_of(target)
    done = subprocess.run([*command, "-Xptxas", "-v"], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return target, done.stderr


def test_one_gpu_can_be_named_to_build_for_and_a_wrong_name_is_refused(tmp_path):
    command = command_of(tmp_path / "_cuda.so", RLKERN_CUDA_TARGETS="sm_90")
    assert [x for x in command if str(x).startswith("arch=")] == ["arch=compute_90,code=sm_90"]
    with pytest.raises(SystemExit, match="lists sm_90, compute_90 and the like, got 'hopper'"):
        command_of(tmp_path / "_cuda.so", RLKERN_CUDA_TARGETS="sm_90,hopper")


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
    for _, kernel, registers in found:
        threads = PIPELINE_THREADS if kernel == "policy_loss_pipeline" else 3 * THREADS
        assert registers * threads <= REGISTERS


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
