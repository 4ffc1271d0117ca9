# SPDX-License-Identifier: Apache-2.0
"""What the tests of the cuda backend share."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from rlkern.backends import _load, _resolve, cuda
from rlkern.backends.cuda.library import load_library
from rlkern.testing.conformance import compare, row

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="g++ is not installed")


def forget() -> None:
    """Makes the next use of the cuda backend load its library again."""
    for function in (load_library, _load, _resolve):
        function.cache_clear()


@pytest.fixture(scope="session")
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


@pytest.fixture(params=[pytest.param("cpu", marks=needs_compiler),
                        pytest.param("cuda", marks=pytest.mark.gpu)])  # fmt: skip
def device(request):
    """Where the cuda backend runs: the emulator's cpu, or a GPU."""
    if request.param == "cpu":
        request.getfixturevalue("emulated")
    elif cuda.unavailable():
        pytest.skip(cuda.unavailable())
    return request.param


def check(operation: str, cases, dtype: torch.dtype, device: str) -> None:
    found = [(case, compare(operation, case, "cuda", dtype, device)) for case in cases]
    lines = [row("cuda", operation, case, dtype, result) for case, result in found]
    print("\n".join(lines))
    failed = [line for line, (_, result) in zip(lines, found) if not result.passed]
    assert lines and not failed, "\n".join(failed)
