# SPDX-License-Identifier: Apache-2.0
"""Runs tests on a copy of the tree in which one fault is planted, in a process that is forked."""

import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from .covering import environment_of
from .plant import Mutant

LEFT_OUT = (".git", ".venv*", "build", "dist", "runs", "__pycache__", ".*_cache", ".mutants",
            "*.egg-info", ".hypothesis")  # fmt: skip


class Outcome(NamedTuple):
    """What became of a mutant: killed, by which test, or alive."""

    killed: bool
    by: str
    seconds: float


def copied(root: Path, tree: Path) -> Path:
    """Returns a copy of the project, with its extension and what is mapped into the package."""
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(root, tree, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    mapped = tree / "rlkern/backends/triton"
    if (tree / "kernels").is_dir() and not mapped.exists():
        mapped.symlink_to("../../kernels/triton")
    return tree


class _First:
    """Remembers the first test that fails, for the process that waits."""

    def __init__(self, path: Path):
        self.path = path

    def pytest_runtest_logreport(self, report) -> None:
        if report.outcome == "failed" and not self.path.exists():
            self.path.write_text(report.nodeid)


def _child(tree: Path, tests: list[str], by: Path, cpu_seconds: float) -> None:
    """Runs the tests; ends this process with pytest's exit code."""
    os.setsid()
    os.chdir(tree)
    os.environ.update(environment_of(tree))
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(tree), str(tree / "tests")]
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + int(cpu_seconds),) * 2)
    out = os.open(by.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 70
    try:
        import pytest

        (tree / "mutants-tests.txt").write_text("\n".join(tests))
        options = ["-x", "-q", "--no-header", "--no-summary", "-p", "no:cacheprovider"]
        code = int(pytest.main([*options, "@mutants-tests.txt"], plugins=[_First(by)]))
    finally:
        os._exit(code)


def run(tree: Path, tests: list[str], expected_seconds: float) -> Outcome:
    """Returns what tests say of a tree; they may take five times as long as they once did."""
    # Imports and collection come on top. Processor time does not depend on the machine's load; what
    # waits without working is given up on after ten times as long.
    cpu_seconds = 5 * expected_seconds + 60
    by, start = tree.parent / f"{tree.name}.killed", time.monotonic()
    by.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _child(tree, tests, by, cpu_seconds)
    status = None
    try:
        while status is None:
            found, code = os.waitpid(child, os.WNOHANG)
            if found:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() - start > 10 * cpu_seconds:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.02)
    finally:
        if status is None:
            os.killpg(child, signal.SIGKILL)
    spent = time.monotonic() - start
    if status == 0:
        return Outcome(False, "", spent)
    reason = "an import or a collection" if status > 1 else f"signal {-status}"
    return Outcome(True, by.read_text() if by.exists() else reason, spent)


def tried(tree: Path, path: str, mutant: Mutant, tests: list[str], seconds: float) -> Outcome:
    """Returns what the tests say of a mutant; the copy is whole again afterwards."""
    file = tree / path
    source = file.read_text()
    file.write_text(mutant.planted(source))
    try:
        return run(tree, tests, seconds)
    finally:
        file.write_text(source)
