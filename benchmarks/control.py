# SPDX-License-Identifier: Apache-2.0
"""Runs the control suite of benchmarks/control.yaml and writes docs/control.md.

    python -m benchmarks.control [--jobs 2] [--only dqn,ppo/Pendulum-v1] [--minutes 10] [--page]

A run that is on record under the same settings is not run again. `--minutes` begins no run after
that time, `--page` writes the page only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import control_page, processes
from benchmarks.control_runs import RECORDS, Pairs, Planned, on_record, planned, records
from rlkern.runs.logs import read_metrics

ROOT = Path(__file__).resolve().parents[1]
# Evaluations on the way, which make the curve.
_POINTS = 20


def measured(run: Planned) -> dict[str, Any] | None:
    """Returns the record of a run that `rlkern control` has just made; None if it failed."""
    settings = run.settings()
    with tempfile.TemporaryDirectory() as folder:
        flags = {**dict(run.own), "algorithm": run.algorithm, "env": run.env, "seed": run.seed,
                 "eval_every": max(1, settings["steps"] // _POINTS), "eval_episodes": 20,
                 "output_dir": folder, "name": "run"}  # fmt: skip
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        done = subprocess.run([sys.executable, "-m", "rlkern", "control", *words],
                              capture_output=True, text=True, cwd=ROOT)  # fmt: skip
        if done.returncode:
            print(f"{run.label}, seed {run.seed}: {done.stderr.strip()}", file=sys.stderr)
            return None
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        lines = read_metrics(Path(folder) / "run")
    curve = [[each["step"], each["eval/return"]] for each in lines if "eval/return" in each]
    kept = ("algorithm", "env", "seed", "steps", "wall_seconds", "best_return", "best_step")
    return {
        **{key: summary[key] for key in kept},
        "return": summary["eval/return"],
        "return_std": summary["eval/return_std"],
        "date": time.strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "curve": curve,
        "settings": settings,
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip()


def wanted(run: Planned, only: list[str]) -> bool:
    """Returns whether a run is among those that were named."""
    return not only or bool({run.algorithm, run.env, run.label} & set(only))


def missed(pairs: Pairs) -> list[str]:
    """Returns a line for each run on record that did not reach its return."""
    return [
        f"MISSED {run.label}, seed {run.seed}: {found['return']:.1f} (at least {run.at_least:g}; at"
        f" best {found['best_return']:.1f} after {found['best_step']:,} steps)"
        for run, found in pairs
        if found is not None and found["return"] < run.at_least
    ]


def main() -> int:
    """Returns 0 if every run that stands on record reached its return."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    only = [word for word in given.only.split(",") if word]
    runs = [run for run in planned() if wanted(run, only)]
    missing = [] if given.page else [run for run in runs if on_record(run, records()) is None]
    if missing and _git("status", "--porcelain", "--untracked-files=no", "--", "rlkern", "csrc"):
        print("commit first: a record names the commit that it was measured at", file=sys.stderr)
        return 2
    until = time.monotonic() + 60 * given.minutes

    def work(run: Planned) -> None:
        found = measured(run) if time.monotonic() < until else None
        if found is not None:
            with RECORDS.open("a") as file:
                file.write(json.dumps(found) + "\n")
            mark = "reached" if found["return"] >= run.at_least else "MISSED"
            print(f"{run.label}, seed {run.seed}: {found['return']:.1f} ({mark} {run.at_least:g}),"
                  f" {found['wall_seconds']:.0f} s", flush=True)  # fmt: skip

    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(work, missing))
    known = records()
    pairs = [(run, on_record(run, known)) for run in planned()]
    control_page.write(pairs)
    print(f"{sum(found is not None for _, found in pairs)} of {len(pairs)} runs are on record")
    lost = missed(pairs)
    print(*lost, sep="\n", end="\n" if lost else "")
    return int(bool(lost))


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
