# SPDX-License-Identifier: Apache-2.0
"""Plants faults and prints which are killed: python -m tests.mutants rlkern/ops --count 50."""

import argparse
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .covering import Record, digest, tests_of
from .plant import Mutant, mutants
from .process import warm
from .run import Outcome, copied, tried

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".mutants"
KNOWN = Path(__file__).with_name("alive.txt")
# Faults there change words and drawings, what only tests read, what only a GPU or an interpreter
# runs, or what runs in the environment of `make test-integrations` or with vLLM.
LEFT_OUT = (
    "rlkern/doctor.py",
    "rlkern/__main__.py",
    "rlkern/testing",
    "rlkern/compare/pages.py",
    "rlkern/compare/figures.py",
    "rlkern/trainer/show/plot.py",
    "rlkern/backends/cuda",
    "rlkern/backends/triton",
    "rlkern/integrations/trl",
    "rlkern/integrations/verl",
    "rlkern/trainer/tasks/verifiers_taskset.py",
    "rlkern/trainer/rollout/vllm_engine.py",
)
# Between a setting and the step that it steers, most faults went unnoticed.
WEIGHTS = {"rlkern/trainer": 3.0, "rlkern/compare": 0.3, "rlkern/cli": 0.5}


class Place(NamedTuple):
    """A mutant and the file it is planted in."""

    path: str
    mutant: Mutant

    def key(self, root: Path) -> str:
        """Returns what names this mutant as long as its file stays the same."""
        return f"{self.path}|{digest(root / self.path)}|{self.mutant.span}|{self.mutant.kind}"

    def known_as(self, root: Path) -> str:
        """Returns what names this mutant in the list of those that live, line numbers aside."""
        line = (root / self.path).read_text().splitlines()[self.mutant.line - 1].strip()
        return f"{self.path} | {line} | {self.mutant.what}"


def sources(root: Path, chosen: list[str]) -> Iterator[str]:
    """Yields the Python files below the chosen paths in which faults are planted."""
    for top in chosen:
        found = sorted((root / top).rglob("*.py")) if (root / top).is_dir() else [root / top]
        for file in found:
            path = file.relative_to(root).as_posix()
            if not path.startswith(LEFT_OUT):
                yield path


def weight_of(path: str) -> float:
    """Returns how much likelier a fault is planted in this file than in most.

    >>> weight_of("rlkern/trainer/loop.py"), weight_of("rlkern/ops/gae.py")
    (3.0, 1.0)
    """
    return next((w for top, w in WEIGHTS.items() if path.startswith(top)), 1.0)


def sample(root: Path, chosen: list[str], count: int, seed: int) -> list[Place]:
    """Returns so many places in a random order; each is drawn by its own name, so that a change of
    one source leaves the places in the others as they were."""
    drawn: list[tuple[float, Place]] = []
    for path in sources(root, chosen):
        seen: Counter[str] = Counter()
        for mutant in mutants((root / path).read_text()):
            name = f"{seed}|{path}|{mutant.what}|{seen[mutant.what]}"
            seen[mutant.what] += 1
            key = random.Random(name).random() ** (1 / weight_of(path))
            drawn.append((key, Place(path, mutant)))
    return [place for _, place in sorted(drawn, key=lambda x: -x[0])[:count]]


def known_alive(file: Path = KNOWN) -> dict[str, str]:
    """Returns {mutant as Place.known_as names it: why no test can or need notice it}."""
    lines = [x for x in file.read_text().splitlines() if x and not x.startswith("#")]
    pairs = (tuple(line.rsplit(" | ", 1)) for line in lines)
    return dict(pairs)


class Results:
    """Outcomes by key, in a file: a run that ends early is gone on with."""

    def __init__(self, file: Path, tests: str):
        self.file, self.tests = file, tests
        lines = file.read_text().splitlines() if file.exists() else []
        found = [json.loads(line) for line in lines]
        # What lives may die of another test; what is dead stays dead.
        self.by_key = {x["key"]: Outcome(*x["outcome"]) for x in found
                       if x["outcome"][0] or x["tests"] == tests}  # fmt: skip

    def add(self, key: str, outcome: Outcome) -> None:
        """Writes an outcome down at once."""
        self.by_key[key] = outcome
        with self.file.open("a") as out:
            line = {"key": key, "tests": self.tests, "outcome": outcome}
            out.write(json.dumps(line) + "\n")


def _selected(record: Record, files: list[str], place: Place, limit: float) -> dict[str, float]:
    """Returns the tests of a mutant that fit a limit of seconds, and how long each takes; what
    tests share is made once, so those that share what an earlier one has made take less."""
    chosen: dict[str, float] = {}
    made: set[str] = set()
    for test, alone in tests_of(record, files, place.path, place.mutant.line).items():
        shared = record.shared(test)
        seconds = alone - sum(shared[each] for each in shared.keys() & made)
        if not chosen or sum(chosen.values()) + seconds <= limit:
            chosen[test] = seconds
            made |= shared.keys()
    return chosen


_worker: dict = {}


def _prepare(counter, folder: str, files: list[str], limit: float) -> None:
    # The pool ends its workers so; what they started must end, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with counter.get_lock():
        counter.value += 1
        tree = Path(folder) / str(counter.value)
    copied(ROOT, tree)
    warm(tree)
    _worker.update(tree=tree, record=Record(KEPT / "record", tree), files=files, limit=limit)


def _record(name: str) -> str | None:
    """Records a test file; returns its name if it did not end within the limit."""
    return None if _worker["record"].record(name, _worker["limit"]) else name


def _try(place: Place) -> Outcome:
    tree, record = _worker["tree"], _worker["record"]
    seconds = _selected(record, _worker["files"], place, _worker["limit"])
    if not seconds:
        return Outcome(False, "no test executes it", 0.0)
    return tried(tree, place.path, place.mutant, seconds)


def _line(place: Place, outcome: Outcome, reason: str | None) -> str:
    where = f"{place.path}:{place.mutant.line}"
    said = f"killed by {outcome.by}" if outcome.killed else f"ALIVE {outcome.by}"
    if reason and not outcome.killed:
        said = f"known to live: {reason}"
    return f"{where:<44} {place.mutant.kind:<18} {place.mutant.what:<70} {said}"


def table(places: list[Place], results: dict[str, Outcome], root: Path = ROOT) -> str:
    """Returns a line for each mutant that was tried, the living last, and the share killed."""
    known = known_alive()
    done = [(x, results[x.key(root)], known.get(x.known_as(root))) for x in places
            if x.key(root) in results]  # fmt: skip
    done.sort(key=lambda x: (not x[1].killed, x[0].path, x[0].mutant.line))
    killed = sum(outcome.killed for _, outcome, _ in done)
    listed = sum(not outcome.killed and reason is not None for _, outcome, reason in done)
    share = f"{killed / len(done):.0%}" if done else "none"
    return "\n".join([*(_line(*x) for x in done), "",
                      f"{killed} of {len(done)} killed ({share}); {len(done) - killed} alive, "
                      f"{listed} of them known; {len(places) - len(done)} not tried"])  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("paths", nargs="*", default=["rlkern"], help="files or folders")
    parser.add_argument("--count", type=int, default=200, help="how many places")
    parser.add_argument("--seed", type=int, default=0, help="which places")
    parser.add_argument("--budget", type=float, default=600, help="seconds for the mutants")
    parser.add_argument("--record-budget", type=float, default=7200, help="seconds to record tests")
    parser.add_argument("--jobs", type=int, default=2, choices=(1, 2), help="processes at once")
    parser.add_argument("--limit", type=float, default=60, help="seconds of tests per mutant")
    parser.add_argument("--tests", nargs="*", help="test files to use (default: all)")
    return parser.parse_args()


def _within(budget: float, jobs: int, files: list[str], limit: float, work, things: list):
    """Yields (thing, work(thing)) of processes with trees of their own until the budget of seconds
    is spent."""
    end = time.monotonic() + budget
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="rlkern-mutants-") as folder:
        given = (context.Value("i", 0), folder, files, limit)
        with context.Pool(jobs if things else 1, _prepare, given) as pool:
            for thing, outcome in zip(things, pool.imap(work, things)):
                yield thing, outcome
                if time.monotonic() > end:
                    break


def _recorded(asked: argparse.Namespace, files: list[str]) -> None:
    """Records what is not fresh; Raises SystemExit if something is left."""
    record = Record(KEPT / "record", ROOT)
    stale = [name for name in files if not record.is_fresh(name)]
    left = set(stale)
    for number, (name, slow) in enumerate(
        _within(asked.record_budget, asked.jobs, files, asked.record_budget, _record, stale), 1
    ):
        print(f"recorded {name} ({number} of {len(stale)})", flush=True)
        left -= {name} - {slow}
    if left:
        raise SystemExit(f"{len(left)} test files are not recorded yet: run this again")


def main() -> None:
    """Records which tests execute what, tries mutants until the budget is spent, prints a table."""
    asked = _arguments()
    files = asked.tests or sorted(f"tests/{p.name}" for p in (ROOT / "tests").glob("test_*.py"))
    _recorded(asked, files)
    places = sample(ROOT, asked.paths, asked.count, asked.seed)
    results = Results(KEPT / "results.jsonl", digest(*(ROOT / f for f in files)))
    todo = [x for x in places if x.key(ROOT) not in results.by_key]
    for place, outcome in _within(asked.budget, asked.jobs, files, asked.limit, _try, todo):
        results.add(place.key(ROOT), outcome)
        print(_line(place, outcome, None), flush=True)
    print(f"\n{table(places, results.by_key)}")
