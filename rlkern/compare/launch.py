# SPDX-License-Identifier: Apache-2.0
"""Runs of a comparison, each a process of its own with its own clock and its own peak memory."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rlkern.compare import record
from rlkern.compare.plan import Comparison, Planned, runs, starts
from rlkern.runs.files import write_text
from rlkern.runs.folder import name_of
from rlkern.trainer.loop import SUMMARY
from rlkern.trainer.settings.document import text

# ru_maxrss counts kibibytes on Linux and bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Outcome:
    """How a process ended, its seconds by the clock and on processors, and its peak memory."""

    code: int
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def cost(self) -> dict[str, float]:
        """Returns what is kept of it."""
        kept = dataclasses.asdict(self)
        del kept["code"]
        return {key: round(value, 1) for key, value in kept.items()}


def train(planned: Planned) -> Outcome:
    """Returns how `rlkern train` ended; what it printed lies beside the run directory as .log.

    What a run that was cut short left is removed: seconds and memory are those of one process.
    """
    run = planned.folder
    run.parent.mkdir(parents=True, exist_ok=True)
    if run.is_dir():
        shutil.rmtree(run)
    if planned.run is not None:
        write_text(Path(f"{run}.yaml"), text(planned.run))
    threads = str((planned.run and planned.run.threads) or 1)
    command = [sys.executable, "-m", "rlkern", "train", *planned.arguments]
    started = time.perf_counter()
    with Path(f"{run}.log").open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": threads, "COLUMNS": "120"},
        )
        # wait4 is the only one that tells the memory of this child from that of the others.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    busy = usage.ru_utime + usage.ru_stime
    return Outcome(process.returncode, seconds, busy, usage.ru_maxrss * _RSS_UNIT)


def compare(comparison: Comparison, *, again: bool, say: Callable[[str], None]) -> list[str]:
    """Returns the runs that failed, after all others are recorded; runs on record are skipped."""
    folder = Path(comparison.records)
    every = runs(comparison)
    wanted = [p for p in every if again or not record.is_recorded(folder, p)]
    if skipped := len(every) - len(wanted):
        say(f"{skipped} runs are on record in {folder} with the same settings and are skipped")
    if not wanted:
        return []
    seeds = {planned.seed for planned in wanted if planned.run is not None}
    need = [p for seed, p in starts(comparison).items() if seed in seeds and not _has_start(p)]
    lost = _each(need, comparison.jobs, lambda planned: _start(planned), say)
    broken = {planned.seed for planned in lost}
    left = [p for p in wanted if p.run is not None and p.seed in broken]
    go = [planned for planned in wanted if planned not in left]
    bad = _each(go, comparison.jobs, lambda p: _measure(comparison, p), say)
    return [p.label for p in (*lost, *left, *bad)]


def _has_start(planned: Planned) -> bool:
    return (planned.folder / SUMMARY).is_file() and (planned.folder / name_of(0)).is_dir()


def _each(
    planned: list[Planned],
    jobs: int,
    work: Callable[[Planned], tuple[bool, str]],
    say: Callable[[str], None],
) -> list[Planned]:
    """Returns those whose work failed, in order; says a line for each as it ends."""
    failed, done = [], 0
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        for one, (ok, text) in zip(planned, pool.map(work, planned)):
            done += 1
            say(f"[{done}/{len(planned)}] {one.label}: {text}")
            if not ok:
                failed.append(one)
    finally:
        # After Ctrl-C, which reaches the running processes too, those that wait are not begun.
        pool.shutdown(cancel_futures=True)
    return failed


def _start(planned: Planned) -> tuple[bool, str]:
    outcome = train(planned)
    if outcome.code:
        return False, _why(planned, outcome)
    return True, f"ready after {outcome.wall_seconds:.1f} s"


def _measure(comparison: Comparison, planned: Planned) -> tuple[bool, str]:
    outcome = train(planned)
    if outcome.code:
        return False, _why(planned, outcome)
    folder = Path(comparison.records)
    path = record.write(folder, planned, jobs=comparison.jobs, cost=outcome.cost)
    curve = [p["eval/accuracy"] for p in record.read(path) if "eval/accuracy" in p]
    return True, f"{curve[0]:.3f} to {curve[-1]:.3f} in {outcome.wall_seconds:.1f} s"


def _why(planned: Planned, outcome: Outcome) -> str:
    log = Path(f"{planned.folder}.log")
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    return f"failed with exit code {outcome.code}: {last} (all of it in {log})"
