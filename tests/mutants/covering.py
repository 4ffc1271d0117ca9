# SPDX-License-Identifier: Apache-2.0
"""Which tests execute which lines of rlkern: recorded once per test file, by coverage."""

import ast
import difflib
import hashlib
import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

SETTINGS = """[run]
parallel = true
relative_files = true
source = {source}
context = ${{MUTANTS_TEST-}}
patch = _exit
data_file = {data}
"""


def digest(*paths: Path) -> str:
    """Returns a short name for the contents of files."""
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in paths)).hexdigest()[:16]


class Record:
    """What was recorded: a folder with a file of coverage and one of seconds per test file."""

    def __init__(self, folder: Path, tree: Path):
        self.folder, self.tree = folder, tree
        folder.mkdir(parents=True, exist_ok=True)

    def _stem(self, test_file: str) -> Path:
        return self.folder / Path(test_file).stem

    def is_fresh(self, test_file: str) -> bool:
        """Returns whether a test file was recorded as it is now."""
        mark = self._stem(test_file).with_suffix(".digest")
        return mark.exists() and mark.read_text() == digest(self.tree / test_file)

    def record(self, test_file: str, environment: dict[str, str], limit: float) -> bool:
        """Runs a test file under coverage; returns False if it did not end within the limit."""
        stem = self._stem(test_file)
        data, times = stem.with_suffix(".coverage"), stem.with_suffix(".json")
        settings = stem.with_suffix(".ini")
        settings.write_text(SETTINGS.format(source=self.tree / "rlkern", data=data))
        command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest",
                   "-q", "--no-summary", "-p", "no:cacheprovider", "-p", "mutants.recorder",
                   test_file]  # fmt: skip
        told = {"COVERAGE_PROCESS_START": str(settings), "MUTANTS_TIMES": str(times)}
        try:
            subprocess.run(command, cwd=self.tree, env={**environment, **told}, timeout=limit,
                           capture_output=True)  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        if not times.exists():
            times.write_text("{}")  # nothing could be collected
        combine = ["combine", "-q", f"--rcfile={settings}", f"--data-file={data}"]
        subprocess.run([sys.executable, "-m", "coverage", *combine], cwd=self.tree)
        snapshot = {str(p.relative_to(self.tree)): p.read_text()
                    for p in (self.tree / "rlkern").rglob("*.py")}  # fmt: skip
        stem.with_suffix(".sources").write_text(json.dumps(snapshot))
        stem.with_suffix(".digest").write_text(digest(self.tree / test_file))
        return True

    def record_all(self, test_files: list[str], environment: dict[str, str], budget: float) -> int:
        """Records what is not fresh within a budget of seconds; returns how many are left."""
        stale = [name for name in test_files if not self.is_fresh(name)]
        end = time.monotonic() + budget
        for i, name in enumerate(stale):
            print(f"recording {name} ({i + 1} of {len(stale)})", flush=True)
            left = end - time.monotonic()
            if left <= 0 or not self.record(name, environment, left):
                return len(stale) - i
        return 0

    @cache  # noqa: B019
    def seconds(self, test_file: str) -> dict[str, float]:
        """Returns how long each test of a file took, of those that passed."""
        path = self._stem(test_file).with_suffix(".json")
        return json.loads(path.read_text()) if path.exists() else {}

    @cache  # noqa: B019
    def lines(self, test_file: str, path: str) -> dict[int, list[str]]:
        """Returns {line of a source as it is now: contexts that execute it}."""
        import coverage

        data = coverage.CoverageData(str(self._stem(test_file).with_suffix(".coverage")))
        data.read()
        names = [name for name in data.measured_files() if name.endswith(path)]
        if not names:
            return {}
        old = json.loads(self._stem(test_file).with_suffix(".sources").read_text()).get(path, "")
        contexts, now = data.contexts_by_lineno(names[0]), (self.tree / path).read_text()
        return {moved: contexts[line] for line, moved in same_lines(old, now) if line in contexts}


def same_lines(old: str, new: str) -> list[tuple[int, int]]:
    """Returns (old number, new number) of each line that two texts share.

    >>> same_lines("a\\nb\\nc", "a\\nx\\nb\\nc")
    [(1, 1), (2, 3), (3, 4)]
    """
    found = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
    return [
        (block.a + i + 1, block.b + i + 1)
        for block in found.get_matching_blocks()
        for i in range(block.size)
    ]


def reached(source: str, line: int) -> list[set[int]]:
    """Returns lines that tell, best first, whether a test would notice a fault in this line.

    The lines of its own statement; those of the function that it is a default of; the whole file.
    """
    tree = ast.parse(source)
    everything = set(range(1, len(source.splitlines()) + 1))
    statement, body = {line}, everything
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or not node.lineno <= line <= (node.end_lineno or 0):
            continue
        own = getattr(node, "body", None)
        # A compound statement begins with its head; the statements in it come later in the walk.
        last = own[0].lineno - 1 if own else node.end_lineno or node.lineno
        if line <= max(last, node.lineno):
            statement = set(range(node.lineno, max(last, node.lineno) + 1))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            body = set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
    return [statement, body, everything]


def tests_of(record: Record, test_files: list[str], path: str, line: int) -> list[str]:
    """Returns the tests that execute a line of a source, quickest first."""
    source = (record.tree / path).read_text()
    for lines in reached(source, line):
        found: dict[str, float] = {}
        for name in test_files:
            seconds, contexts = record.seconds(name), record.lines(name, path)
            hit = {c for number in lines for c in contexts.get(number, ())} - {""}
            whole = {c for c in hit if "::" not in c}
            found |= {t: s for t, s in seconds.items() if t in hit or whole & {t.split("::")[0]}}
        if found:
            return sorted(found, key=lambda test: found[test])
    return []


def environment_of(tree: Path) -> dict[str, str]:
    """Returns the environment in which Python finds the rlkern of a tree before any other.

    Without Triton's interpreter: it takes most of the time, and no fault is planted in its kernels.
    """
    path = os.pathsep.join([str(tree), str(tree / "tests"), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "PYTHONPATH": path.rstrip(os.pathsep),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "0",
    }
