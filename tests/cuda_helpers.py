# SPDX-License-Identifier: Apache-2.0
"""What the tests of the cuda backend share; conftest.py has its fixtures."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from rlkern.algorithms import algorithm as find_algorithm
from rlkern.backends import _load, _resolve
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


def build_emulated(folder: Path) -> Path:
    """Returns the library of the kernels with the emulator in the place of a GPU."""
    flags = "-std=c++17 -O1 -fPIC -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas -Werror"
    include = [f"-I{ROOT / 'tests' / 'cuda_emulator'}", f"-I{ROOT / 'csrc'}"]
    # One source: the emulated machine is one variable.
    everything = folder / "all.cpp"
    everything.write_text("".join(f'#include "{source}"\n' for source in SOURCES))
    command = [str(COMPILER), *flags.split(), *include, "-shared", str(everything)]
    subprocess.run([*command, "-o", str(folder / "emulated.so")], check=True)
    return folder / "emulated.so"


def served(case) -> bool:
    """Returns whether the backend takes a case: no kept sets, and ratios of tokens alone."""
    level = case.coefficients.get("level", find_algorithm(case.algorithm).level)
    return case.keep == "none" and level == "token"


def check(operation: str, cases, dtype: torch.dtype, device: str) -> None:
    found = [(case, compare(operation, case, "cuda", dtype, device)) for case in cases]
    lines = [row("cuda", operation, case, dtype, result) for case, result in found]
    print("\n".join(lines))
    failed = [line for line, (_, result) in zip(lines, found) if not result.passed]
    assert lines and not failed, "\n".join(failed)
