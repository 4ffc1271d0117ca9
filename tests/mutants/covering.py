# SPDX-License-Identifier: Apache-2.0
"""Which tests execute which lines of rlkern: recorded once per test file, by coverage."""

import ast
import difflib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

from .process import PYTEST, forked

# They look at defaults and tables, and execute nothing of them.
LOOKING = ("tests/test_public_api.py", "tests/test_control_suite.py")
_WORD, _FEW = re.compile(r"[A-Za-z]\w{5,}"), 4

SETTINGS = """[run]
parallel = true
relative_files = true
source = {source}
context = ${{MUTANTS_TEST-}}
patch = _exit
data_file = {data}
"""

# What it wrote before it was changed says something else.
_RECORDER = Path(__file__).with_name("recorder.py")


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
        return mark.exists() and mark.read_text() == digest(self.tree / test_file, _RECORDER)

    def record(self, test_file: str, limit: float) -> bool:
        """Runs a test file under coverage in a child; returns False if it did not end within the
        limit of seconds."""
        stem = self._stem(test_file)
        data, times = stem.with_suffix(".coverage"), stem.with_suffix(".json")
        settings = stem.with_suffix(".ini")
        settings.write_text(SETTINGS.format(source=self.tree / "rlkern", data=data))
        for old in (times, *self.folder.glob(f"{data.name}*")):
            old.unlink(missing_ok=True)

        def covered() -> int:
            import coverage
            import pytest

            os.environ |= {"COVERAGE_PROCESS_START": str(settings), "MUTANTS_TIMES": str(times)}
            running = coverage.Coverage(config_file=str(settings))
            running.start()
            code = int(pytest.main([*PYTEST, "-p", "mutants.recorder", test_file]))
            running.stop()
            running.save()
            return code

        if forked(self.tree, covered, stem.with_suffix(".log"), limit) == -signal.SIGKILL:
            return False
        if not times.exists():
            times.write_text("{}")  # nothing could be collected
        combine = ["combine", "-q", f"--rcfile={settings}", f"--data-file={data}"]
        subprocess.run([sys.executable, "-m", "coverage", *combine], cwd=self.tree)
        snapshot = {str(p.relative_to(self.tree)): p.read_text()
                    for p in (self.tree / "rlkern").rglob("*.py")}  # fmt: skip
        stem.with_suffix(".sources").write_text(json.dumps(snapshot))
        stem.with_suffix(".digest").write_text(digest(self.tree / test_file, _RECORDER))
        return True

    @cache  # noqa: B019
    def _times(self, test_file: str) -> dict[str, tuple[float, dict[str, float]]]:
        path = self._stem(test_file).with_suffix(".json")
        return json.loads(path.read_text()) if path.exists() else {}

    @cache  # noqa: B019
    def seconds(self, test_file: str) -> dict[str, float]:
        """Returns how long each test of a file takes alone, of those that passed."""
        times = self._times(test_file)
        return {test: own + sum(shared.values()) for test, (own, shared) in times.items()}

    def shared(self, test: str) -> dict[str, float]:
        """Returns {fixture that a test shares with others: how long that takes}."""
        return self._times(test.split("::")[0])[test][1]

    @cache  # noqa: B019
    def _sources(self, test_file: str) -> dict[str, str]:
        """Returns {path: text} of what there was to execute when a test file was recorded."""
        return json.loads(self._stem(test_file).with_suffix(".sources").read_text())

    @cache  # noqa: B019
    def lines(self, test_file: str, path: str) -> dict[int, list[str]]:
        """Returns {line of a source as it is now: contexts that execute it}."""
        import coverage

        now = (self.tree / path).read_text()
        former = former_path(self._sources(test_file), path, now)
        data = coverage.CoverageData(str(self._stem(test_file).with_suffix(".coverage")))
        data.read()
        names = [name for name in data.measured_files() if former and name.endswith(former)]
        if not names:
            return {}
        contexts = data.contexts_by_lineno(names[0])
        pairs = same_lines(self._sources(test_file)[former], now)
        return {moved: contexts[line] for line, moved in pairs if line in contexts}


def former_path(sources: dict[str, str], path: str, now: str) -> str | None:
    """Returns where a source was when {path: text} were recorded: there, or where the text that
    shares most of its lines was, None if that is less than half of them.

    >>> former_path({"a.py": "x\\ny\\nz", "b.py": "x"}, "c.py", "x\\ny")
    'a.py'
    >>> former_path({"a.py": "x"}, "c.py", "p\\nq")
    """
    if path in sources:
        return path
    lines = set(now.splitlines())

    def shared(old: str) -> float:
        theirs = set(sources[old].splitlines())
        return len(lines & theirs) / max(1, len(lines | theirs))

    best = max(sources, key=shared, default=None)
    return best if best is not None and shared(best) >= 0.5 else None


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

    Of a statement in a function: its own, those of the function, the whole file. What an import
    executes is executed by whichever test imports first, which says nothing: of a default, the
    lines of its function, and of anything else outside functions, the whole file.
    """
    tree = ast.parse(source)
    everything = set(range(1, len(source.splitlines()) + 1))
    statement, body, inside = {line}, everything, False
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or not node.lineno <= line <= (node.end_lineno or 0):
            continue
        own = getattr(node, "body", None)
        # A compound statement begins with its head; the statements in it come later in the walk.
        last = own[0].lineno - 1 if own else node.end_lineno or node.lineno
        if line <= max(last, node.lineno):
            statement = set(range(node.lineno, max(last, node.lineno) + 1))
        if isinstance(node, ast.FunctionDef):
            body = set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
            inside = inside or line in body
    return ([statement] if inside else []) + ([body] if body != everything else []) + [everything]


def tests_of(record: Record, test_files: list[str], path: str, line: int) -> dict[str, float]:
    """Returns the tests that execute a line of a source and how long each takes, quickest first.

    If none does, as where a table is made at import, those first that are of the source by name;
    then those that execute anything of it, and after them the others of their files, which may read
    the table: first of the file of which the largest share executes the source.
    """
    levels = reached((record.tree / path).read_text(), line)
    for lines in levels:
        found = {name: executing(record, name, path, lines) for name in test_files}
        if any(found.values()):
            break
    tests = dict(sorted((x for each in found.values() for x in each.items()), key=lambda x: x[1]))
    if lines is levels[-1]:
        every = sorted(
            (x for n in test_files for x in record.seconds(n).items()), key=lambda x: x[1]
        )
        tests = {t: s for t, s in every if is_of(t, Path(path).stem)} | tests
        share = {
            name: len(found[name]) / len(record.seconds(name)) for name in found if found[name]
        }
        for name in sorted(share, key=lambda name: -share[name]):
            tests |= {t: s for t, s in record.seconds(name).items() if t not in tests}
    if len(levels) < 3:  # not in a function's body
        looking = [record.seconds(name) for name in LOOKING if name in test_files]
        tests = {t: s for each in looking for t, s in each.items()} | tests
    named = naming(record.tree, tuple(test_files), path, line)
    return {t: s for t, s in tests.items() if t.split("::")[0] in named} | tests


def naming(tree: Path, test_files: tuple[str, ...], path: str, line: int) -> set[str]:
    """Returns the test files that name what a line of a source does and few others do: likely they
    hold it to something."""
    texts = _words(tree, test_files)
    source = (tree / path).read_text().splitlines()[line - 1]
    found = [{f for f, words in texts.items() if w in words} for w in _WORD.findall(source)]
    return set().union(*(files for files in found if len(files) <= _FEW))


@cache
def _words(tree: Path, test_files: tuple[str, ...]) -> dict[str, frozenset[str]]:
    return {f: frozenset(_WORD.findall((tree / f).read_text())) for f in test_files}


def is_of(test: str, stem: str) -> bool:
    """Returns whether a test is of a source by name, as tests of every algorithm are.

    >>> is_of("tests/test_x.py::test_y[eager-opo-1]", "opo"), is_of("tests/test_x.py::opo", "opo")
    (True, False)
    """
    return stem in test.partition("[")[2].rstrip("]").split("-")


def executing(record: Record, test_file: str, path: str, lines: set[int]) -> dict[str, float]:
    """Returns the tests of a file that execute any of some lines, and how long each takes."""
    seconds, contexts = record.seconds(test_file), record.lines(test_file, path)
    hit = {c for number in lines for c in contexts.get(number, ())} - {""}
    whole = test_file in hit  # what a fixture of the file runs
    return {t: s for t, s in seconds.items() if whole or t in hit}
