# SPDX-License-Identifier: Apache-2.0
"""Prints the speed ratios of one run, after the tests of what is timed: red means no number.

    python -m benchmarks.run [policy_loss | scans | ...] [--select WORDS]

A run without --select is recorded in benchmarks/results/cpu.jsonl, unless the tree has changes that
are not committed, and the numbers of the documents are written from there. Rows of processors with
other instruction sets stay beside them. It fails if a promise is broken, or if a ratio that has a
promise or a goal is worse than the same kind of machine has on record by more than both their
spreads: then nothing is recorded. Who means it removes the old rows.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import bench_linear_policy_loss as linear
from benchmarks import promises, readme, report

FOLDER = Path(__file__).parent
JSON_FILE = FOLDER.parent / "build" / "benchmark.json"
# Case names of the conformance test that stand for the sizes timed here.
GATE = "cpu and (characters or qwen or garbage_under_mask or all_terms or native)"
NOTHING_SELECTED = 5
ISA_SELECT = "test_rlkern_in_place and 151936"
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


def gate() -> bool:
    """Whether the conformance tests of these operations pass here."""
    return pytest("--no-summary", str(FOLDER.parent / "tests/test_conformance.py"), "-k", GATE) == 0


def timed(stem: str, select: str, **environment: str) -> report.Times | None:
    """Returns what one file of benchmarks measures; None if one of them fails."""
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


def main() -> int:
    """Runs tests, then benchmarks; returns 1 if one is red or a promised bound is missed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stem", nargs="?", choices=stems(), help="one file; all by default")
    parser.add_argument("--select", default="", help="words that pytest's -k picks benchmarks by")
    arguments = parser.parse_args()
    if not gate():
        print("the tests of these operations fail here, so nothing is timed", file=sys.stderr)
        return 1
    chosen = [arguments.stem] if arguments.stem else stems()
    parts: dict[str, report.Times | None] = {}
    for stem in chosen:
        started = time.monotonic()
        parts[stem] = timed(stem, arguments.select, **ENVIRONMENT.get(stem, {}))
        print(f"{stem}: {time.monotonic() - started:.0f} s", flush=True)
    if "policy_loss" in chosen and not arguments.select:
        parts["policy_loss by instruction set"] = isas()
    times = report.merge(*(part for part in parts.values() if part))
    verdicts = promises.verdicts(times)
    spared = linear.left_out() if "linear_policy_loss" in chosen else {}
    apart = [f"left out        {group}: {why}" for group, why in spared.items()]
    print(report.table(times), "", *verdicts, *apart, sep="\n")
    failed = [stem for stem, part in parts.items() if part is None]
    if failed:
        print(f"FAILED, so not timed: {', '.join(failed)}", file=sys.stderr)
    fallen: list[str] = []
    if times and not arguments.select and "RLKERN_BENCH_SMOKE" not in os.environ:
        complete = not arguments.stem and not failed
        path, where = report.RESULTS / "cpu.jsonl", report.machine()
        fallen = promises.fallen(times, report.on_record(path, where))
        print("", *fallen, sep="\n")
        try:
            if fallen:  # the next run is to see it, too
                raise ValueError("not recorded: what has fallen would be the record")
            report.record(times, path, where, complete=complete, spared=spared)
            readme.write()
        except ValueError as error:
            print(error, file=sys.stderr)
    return int(bool(failed or fallen) or any(verdict.broken for verdict in verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
