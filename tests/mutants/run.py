# SPDX-License-Identifier: Apache-2.0
"""Runs tests on a copy of the tree in which one fault is planted, in a process that is forked."""

import resource
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from .plant import Mutant
from .process import PYTEST, forked

LEFT_OUT = (".venv*", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")
# What commands write, in the project's folder only: rlkern has packages of these names.
LEFT_OUT_AT_TOP = (".git", "build", "dist", "runs", ".mutants")

ROUNDS = (2.0, 10.0)  # seconds of tests after which a round ends


class Outcome(NamedTuple):
    """What became of a mutant: killed, by which test, or alive."""

    killed: bool
    by: str
    seconds: float


def copied(root: Path, tree: Path) -> Path:
    """Returns a copy of the project, with its extension and what is mapped into the package."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        patterns = LEFT_OUT + (LEFT_OUT_AT_TOP if Path(folder) == root else ())
        return shutil.ignore_patterns(*patterns)(folder, names)

    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(root, tree, ignore=ignored, symlinks=True)
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


def rounds(seconds: dict[str, float]) -> list[list[str]]:
    """Returns tests in rounds that take ever longer: most faults die in the first, which then need
    not import the files of the others.

    >>> rounds({"a": 0.5, "b": 1.0, "c": 1.0, "d": 30.0})
    [['a', 'b'], ['c'], ['d']]
    """
    found: dict[int, list[str]] = {}
    total = 0.0
    for test, spent in seconds.items():
        total += spent
        found.setdefault(sum(total > end for end in ROUNDS), []).append(test)
    return list(found.values())


def _tested(tree: Path, seconds: dict[str, float], by: Path, cpu_seconds: float) -> int:
    """Runs the tests; returns pytest's exit code."""
    import pytest

    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + int(cpu_seconds),) * 2)
    for tests in rounds(seconds):
        (tree / "mutants-tests.txt").write_text("\n".join(tests))
        if code := int(pytest.main([*PYTEST, "-x", "@mutants-tests.txt"], plugins=[_First(by)])):
            return code
    return 0


def run(tree: Path, seconds: dict[str, float]) -> Outcome:
    """Returns what tests say of a tree; they may take three times as long as they once did."""
    # Imports and collection come on top. Processor time does not depend on the machine's load; what
    # waits without working is given up on after ten times as long.
    cpu_seconds = 3 * sum(seconds.values()) + 30
    by, start = tree.parent / f"{tree.name}.killed", time.monotonic()
    by.unlink(missing_ok=True)
    status = forked(
        tree,
        lambda: _tested(tree, seconds, by, cpu_seconds),
        by.with_suffix(".log"),
        10 * cpu_seconds,
    )
    spent = time.monotonic() - start
    if status == 0:
        return Outcome(False, "", spent)
    reason = "an import or a collection" if status > 1 else f"signal {-status}"
    return Outcome(True, by.read_text() if by.exists() else reason, spent)


def tried(tree: Path, path: str, mutant: Mutant, seconds: dict[str, float]) -> Outcome:
    """Returns what tests, each with the seconds that it takes, say of a mutant; the copy is whole
    again afterwards."""
    file = tree / path
    source = file.read_text()
    file.write_text(mutant.planted(source))
    try:
        return run(tree, seconds)
    finally:
        file.write_text(source)
