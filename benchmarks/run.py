# SPDX-License-Identifier: Apache-2.0
"""Prints the speed ratios of one run, after the tests of what is timed: red means no number.

python -m benchmarks.run [policy_loss | scans]
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report

FOLDER = Path(__file__).parent
# Case names of the conformance test that stand for the sizes timed here.
GATE = "cpu and (characters or qwen or garbage_under_mask or all_terms or native)"


def main() -> int:
    """Runs tests, then benchmarks; returns 1 if a test is red or a bound is missed."""
    stems = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stem", nargs="?", choices=stems, help="one file; all of them by default")
    parser.add_argument("--select", default="", help="words that pytest's -k picks benchmarks by")
    parser.add_argument(
        "--record", action="store_true", help="add rows to benchmarks/results/cpu.jsonl"
    )
    arguments = parser.parse_args()

    gate = str(FOLDER.parent / "tests" / "test_conformance.py")
    # In a process of its own: the suite switches checks on that must not be timed.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "--no-summary",
        gate,
        "-k",
        GATE,
    ]
    if subprocess.run(command).returncode != 0:
        print("the tests of these operations fail here, so nothing is timed", file=sys.stderr)
        return 1
    files = [
        str(FOLDER / f"bench_{stem}.py") for stem in ([arguments.stem] if arguments.stem else stems)
    ]
    json_file = FOLDER.parent / "build" / "benchmark.json"
    json_file.parent.mkdir(exist_ok=True)
    options = ["-q", "--no-header", "--benchmark-disable-gc", f"--benchmark-json={json_file}"]
    options += ["--benchmark-quiet", "-p", "no:cacheprovider", "-k", arguments.select]
    if pytest.main([*files, *options]) != 0:
        return 1
    times = report.read(json_file)
    verdicts = report.verdicts(times)
    print(report.table(times), "", *verdicts, sep="\n")
    if arguments.record:
        report.append(times, report.RESULTS / "cpu.jsonl")
    return int(any(line.startswith("MISSED") for line in verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
