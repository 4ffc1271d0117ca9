# SPDX-License-Identifier: Apache-2.0
"""Prints the speed ratios of one run, after the tests of what is timed: red means no number.

    python -m benchmarks.run [policy_loss scans ...] [--quick] [--select WORDS] [--processes 1]

A run without --quick and --select is recorded in benchmarks/results/cpu.jsonl, unless the tree has
changes that are not committed or a variable forces a backend, and the numbers of the documents are
written from there. Rows of other processors stay beside them. It fails if a promise is broken, or
if a ratio of ours to somebody else's, or to the ceiling, is worse than the same kind of machine has
in the committed rows by more than both their spreads. What seems so is first timed again, twice at
most, in processes of their own, since one process says little of the next; the groups in which it
still is so are not recorded, the others are. A run of all files fails alike where it did not time a
row that is on record. Who means it removes the old rows. Where the spread of this run alone hides
that its median fell, a line says that it is in doubt; one that has drifted is worse than in the
best committed run (benchmarks/drift.py).
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import bench_linear_policy_loss as linear
from benchmarks import drift, processes, promises, readme, report

FOLDER = Path(__file__).parent
JSON_FILE = FOLDER.parent / "build" / "benchmark.json"
# Case names of the conformance test that stand for the sizes timed here.
GATE = "cpu and (characters or qwen or garbage_under_mask or all_terms or native)"
# {file of benchmarks: tests of what it times that the conformance test does not compare}
TESTS = {
    "calls": ("td_loss",), "groups": ("sampling",), "linear_policy_loss": ("linear",),
    "preference": ("preference",),
}  # fmt: skip
NOTHING_SELECTED = 5
ISA_SELECT = "test_rlkern_in_place and 151936"
# Words that pick one size of each operation, for --quick.
QUICK = {
    "calls": "256x6", "groups": "sorted", "linear_policy_loss": "64", "policy_loss": "151936",
    "preference": "8x4096 or 64", "scans": "512x4096",
}  # fmt: skip
AGAIN = 2  # processes more, of what seems to have fallen
# Memory that a round frees is taken by the next one. Rounds of seconds else measure what a virtual
# machine does with half a gigabyte of freed memory in the meantime, and only of who frees any.
ENVIRONMENT = {
    "linear_policy_loss": {
        "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    }
}  # fmt: skip
# Vectorised and portable code of the loss, each forced by RLKERN_ISA in a process of its own.
NARROW_ISAS = ("avx2", "baseline")


def stems() -> list[str]:
    """Returns the name of every file of benchmarks."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def pytest(*options: str, **environment: str) -> int:
    """Returns the exit status of pytest in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", *options]
    return subprocess.run(command, env={**os.environ, **environment}).returncode


def gate(chosen: list[str]) -> bool:
    """Whether the conformance tests, and those of what else these files time, pass here."""
    names = ["conformance", *(name for stem in chosen for name in TESTS.get(stem, ()))]
    first, *more = [str(FOLDER.parent / f"tests/test_{name}.py") for name in names]
    return pytest("--no-summary", first, "-k", GATE) == 0 and (
        not more or pytest("--no-summary", *more) == 0
    )


def timed(stem: str, select: str, **environment: str) -> report.Times | None:
    """Returns what one file of benchmarks measures in a process; None if one of them fails."""
    JSON_FILE.parent.mkdir(exist_ok=True)
    JSON_FILE.unlink(missing_ok=True)
    options = ["--benchmark-disable-gc", "--benchmark-quiet", f"--benchmark-json={JSON_FILE}"]
    options += ["-p", "no:cacheprovider", "-k", select]
    status = pytest(str(FOLDER / f"bench_{stem}.py"), *options, **environment)
    if status not in (0, NOTHING_SELECTED):
        return None
    return report.read(JSON_FILE) if JSON_FILE.is_file() else {}  # none where all were left out


def narrow_isas() -> list[str]:
    """Returns the instruction sets to compare with the best one, if that is wider."""
    try:
        native = importlib.import_module("rlkern._C")
    except ImportError:
        return []
    best, *others = native.isa_names()
    return [isa for isa in NARROW_ISAS if isa in others and not best.startswith("avx2")]


def isas() -> report.Times | None:
    """Returns the loss in place by instruction set: the best this processor has, and narrower."""
    found: list[report.Times] = []
    narrow = narrow_isas()
    for isa in ["", *narrow] if narrow else []:
        times = timed("policy_loss", ISA_SELECT, RLKERN_ISA=isa)
        if times is None:
            return None
        name = f"rlkern_in_place_{isa or 'best'}"
        found.append({group: {name: min(rows.values())} for group, rows in times.items()})
    return report.merge(*found)


def measured(stem: str, select: str) -> report.Times | None:
    """Returns what one file of benchmarks measures, with what it says of instruction sets."""
    started = time.monotonic()
    times = timed(stem, select, **ENVIRONMENT.get(stem, {}))
    if stem == "policy_loss" and not select and times is not None:
        narrow = isas()
        times = None if narrow is None else report.merge(times, narrow)
    print(f"{stem}: {time.monotonic() - started:.0f} s", flush=True)
    return times


def repeated(stem: str, select: str, processes: int) -> list[report.Times] | None:
    """Returns the rows of a file of benchmarks in each of so many processes."""
    found = []
    for _ in range(processes):
        times = measured(stem, select)
        if times is None:
            return None
        found.append(times)
    return found


def fallen(
    parts: dict[str, list[report.Times]], known: report.Times, processes: int
) -> dict[str, list[str]]:
    """Returns {group: a line for each ratio} that is worse than on record, also after it was timed
    again; parts then hold the rows of all processes.

    processes  how many more may be asked
    """
    for again in range(processes + 1):
        found = {stem: promises.fallen(report.joined(x), known) for stem, x in parts.items()}
        lines = {group: x for groups in found.values() for group, x in groups.items()}
        stems = sorted(stem for stem, groups in found.items() if groups)
        if not lines or again == processes:
            break
        print("", *_flat(lines), f"timed again: {', '.join(stems)}", sep="\n", flush=True)
        for stem in stems:
            more = repeated(stem, "", 1)
            if more is None:  # what has fallen stays so
                print(f"FAILED when it was timed again: {stem}", file=sys.stderr, flush=True)
            parts[stem] += more or []
    return lines


def _flat(lines: dict[str, list[str]]) -> list[str]:
    return [line for group in lines.values() for line in group]


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    """Returns what the command line asks for."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stem", nargs="*", help=f"of {', '.join(stems())}; all by default")
    parser.add_argument("--quick", action="store_true", help="one size of each; not recorded")
    parser.add_argument("--select", default="", help="words that pytest's -k picks benchmarks by")
    parser.add_argument("--processes", type=int, default=1, help="whose rounds are joined")
    given = parser.parse_args(words)
    if unknown := set(given.stem) - set(stems()):
        parser.error(f"stem must be of {', '.join(stems())}, got {', '.join(sorted(unknown))}")
    if given.processes < 1:
        parser.error(f"--processes must be at least 1, got {given.processes}")
    if given.quick and given.select:
        parser.error("--quick selects by itself: leave out --select")
    return given


def main(words: list[str] | None = None) -> int:
    """Runs tests, then benchmarks; returns 1 if one is red, a promised bound is missed, a ratio
    fell, or what was to be recorded could not be."""
    given = arguments_of(words)
    forced = [name for name in report.FORCED if os.environ.get(name)]
    whole = not (given.select or given.quick or forced)
    path, where = report.RESULTS / "cpu.jsonl", report.machine()
    try:
        known = report.on_record(report.committed(path), where)
        report.records(path)  # what cannot be read could not be written in ten minutes either
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if forced:
        print(f"{', '.join(forced)} is set, so nothing of this run is recorded", flush=True)
    elif whole and (why := report.refusal(where)):
        print(f"nothing of this run will be {why.removeprefix('not ')}", flush=True)
    chosen = given.stem or stems()
    if not gate(chosen):
        print("the tests of these operations fail here, so nothing is timed", file=sys.stderr)
        return 1
    asked = {stem: QUICK[stem] if given.quick else given.select for stem in chosen}
    found = {stem: repeated(stem, select, given.processes) for stem, select in asked.items()}
    parts = {stem: part for stem, part in found.items() if part is not None}
    failed = found.keys() - parts.keys()
    fell = fallen(parts, known, AGAIN) if whole else {}
    times = report.merge(*map(report.joined, parts.values()))
    verdicts = promises.verdicts(times)
    spared = linear.left_out() if "linear_policy_loss" in chosen else {}
    apart = [f"left out        {group}: {why}" for group, why in spared.items()]
    if whole:
        apart += promises.doubtful(times, known) + drift.lines(times, drift.past(path, where))
    gone: dict[str, str] = {}
    if whole and not failed:  # of some files the groups that were timed, of all all on record
        groups = known.keys() & times.keys() if given.stem else known.keys() - spared.keys()
        gone = promises.gone(times, known, sorted(groups))
    print(report.table(times), "", *verdicts, *apart, *gone.values(), "", *_flat(fell), sep="\n")
    if given.stem:  # a part of a file may be what was asked for
        gone = {}
    lost = bool(fell or gone)
    if not (times or failed or spared):
        lost = True
        print(f"nothing was timed: --select {given.select!r} picks none", file=sys.stderr)
    if failed:
        print(f"FAILED, so not timed: {', '.join(sorted(failed))}", file=sys.stderr)
    if fell:  # what has fallen would be the record, and the next run would not see it
        print(f"not recorded, since they fell: {', '.join(fell)}", file=sys.stderr)
    if gone:
        print(f"not recorded, since rows are gone: {', '.join(gone)}", file=sys.stderr)
    if times and whole:
        kept = {group: rows for group, rows in times.items() if group not in fell | gone}
        complete = not (given.stem or failed or fell or gone)
        try:
            report.record(kept, path, where, complete=complete, spared=spared)
            readme.write()
        except ValueError as error:
            lost = True
            print(error, file=sys.stderr)
    return int(bool(failed or lost) or any(verdict.broken for verdict in verdicts))


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
