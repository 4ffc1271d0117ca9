# SPDX-License-Identifier: Apache-2.0
"""`make gpu` gone through at small sizes, with stubs in the place of a GPU's own programs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns("*.so", "*.egg-info", ".*", "__pycache__", "trainer_runs")
WRITTEN = {"build", "runs"}  # of the root alone: the package has folders that may be named so, too
OPTIONAL = re.search(r"^OPTIONAL := (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
STUBS = {
    # Like the true ones they are given options, then the command.
    "ncu": 'echo "profiled: ${@: -3}"',
    "compute-sanitizer": "exit 1",
    "nvcc": "exit 1",
}
FAILING = """
import os
import signal
import time
from pathlib import Path

import pytest


def parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.sanitize
@pytest.mark.gpu
def test_that_fails():
    assert False, "planted"


@pytest.mark.gpu
def test_that_never_ends():
    process = os.getpid()
    while Path(f"/proc/{process}/comm").read_text() != "timeout\\n":
        process = parent(process)
    os.kill(process, signal.SIGALRM)  # its time is up
    time.sleep(60)
"""


def left_out(folder: str, names: list[str]) -> set[str]:
    """Returns what of a folder is no source: what programs wrote there."""
    return LEFT_OUT(folder, names) | (WRITTEN if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Returns a copy of the sources with a GPU test that fails, and a folder of stubs."""
    where = tmp_path_factory.mktemp("gpu")
    shutil.copytree(ROOT, where / "rlkern", ignore=left_out)
    for path in (where / "rlkern" / "tests").glob("test_*.py"):
        path.unlink()
    (where / "rlkern" / "tests" / "test_planted.py").write_text(FAILING)
    broken = "import no_such_package  # for what has mark.gpu\n"
    (where / "rlkern" / "tests" / "test_broken.py").write_text(broken)
    (where / "stubs").mkdir()
    for name, text in STUBS.items():
        stub = where / "stubs" / name
        stub.write_text(f"#!/bin/bash\n{text}\n")
        stub.chmod(0o755)
    return where


def make(tree: Path, *goals: str, **variables: str) -> subprocess.CompletedProcess:
    """Returns what make said of some goals; its results are in tree/out."""
    # Without what is meant for the make and the pytest that run this test.
    outer = ("PYTEST_", "MAKE", "MFLAGS", "ARGS")
    env = {name: x for name, x in os.environ.items() if not name.startswith(outer)}
    env |= {"PATH": f"{tree / 'stubs'}:{os.environ['PATH']}", "OUT": str(tree / "out")}
    env["CXX"] = "false"  # no compiler: its minutes would show nothing
    command = ["make", *goals, "SMOKE=1", f"PYTHON={sys.executable}", "JOBS=1"]
    env |= variables
    return subprocess.run(command, cwd=tree / "rlkern", env=env, capture_output=True, text=True)


def rows(tree: Path) -> list[dict]:
    return [json.loads(x) for x in (tree / "out" / "smoke.jsonl").read_text().splitlines()]


def test_what_is_not_installed_keeps_no_other_test_of_a_gpu_from_being_found():
    """Of the packages that `make gpu` only reports where they are missing."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); import pytest; "
    collect = "raise SystemExit(pytest.main(['-q', '--collect-only', '-m', 'gpu', *sys.argv[1:]]))"
    asking = [str(x) for x in ROOT.glob("tests/test_*.py") if "mark.gpu" in x.read_text()]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", absent + collect, *asking]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_cuda_kernels.py::" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux for parents")
def test_what_fails_costs_none_of_the_results(tree):
    first = make(tree, "gpu", "PART=1")
    said = first.stdout + first.stderr
    # Each of the two failures is one of make's, and nothing else is.
    failed = re.findall(r"\*\*\* \[Makefile:\d+: (gpu-[a-z]+)\]", said)
    assert first.returncode != 0 and sorted(failed) == ["gpu-native", "gpu-tests"], said
    assert "false cannot compile C++17" in said  # the build of native code failed,
    tested = (tree / "out" / "tests.txt").read_text()  # and so did a test; another was cut off
    assert "FAILED" in tested and "AssertionError: planted" in tested and "1 failed" in tested
    assert "rlkern_policy_loss_in_place" in (tree / "out" / "counters.txt").read_text()
    names = {row["row"] for row in rows(tree)}
    wanted = "copy_of_the_logits matmul rlkern_gae rlkern_linear_policy_loss python_policy_loss"
    assert names >= set(wanted.split()) and not any("error" in row for row in rows(tree))
    second = make(tree, "gpu", "PART=2")
    said = second.stdout + second.stderr
    assert second.returncode == 0, said
    assert {row["row"] for row in rows(tree)} >= names | {"eager_policy_loss", "compile_gspo"}
    assert "it does not run on this machine" in said
    # Without xdist pytest would run nothing where one file cannot be read.
    (tree / "absent" / "xdist.py").parent.mkdir()
    (tree / "absent" / "xdist.py").write_text("raise ImportError")
    alone = {"PYTHONPATH": str(tree / "absent"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    assert make(tree, "gpu-tests", "SYSTEM=1", **alone).returncode != 0
    tested = (tree / "out" / "tests.txt").read_text()
    assert "no_such_package" in tested and "1 failed" in tested
