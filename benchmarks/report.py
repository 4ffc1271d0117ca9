# SPDX-License-Identifier: Apache-2.0
"""Turns pytest-benchmark's file into the table of ratios and committed rows.

A time is the median of its rounds; beside it stand the fastest round, and between what a fifth and
four fifths of the rounds lie.
"""

import json
import os
import statistics
import subprocess
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

import rlkern
from benchmarks import fields
from rlkern.doctor import processor
from rlkern.runs.files import write_text

RESULTS = Path(__file__).parent / "results"
# Variables under which a run is not of what the machine would do by itself.
FORCED = ("RLKERN_BENCH_SMOKE", "RLKERN_BACKEND", "RLKERN_ISA")


class Timing(NamedTuple):
    """Milliseconds of the rounds of a benchmark: their median, p20, p80, and the fastest.

    work  what cannot be avoided: GB to and from memory, or of matrix products 10⁹ operations; 0 if
          the benchmark does not say
    """

    median: float
    p20: float
    p80: float
    fastest: float
    work: float = 0.0

    @property
    def rate(self) -> float:
        """Returns GB/s, or GFLOP/s.

        >>> Timing(2.0, 2.0, 2.0, 2.0, work=0.5).rate
        250.0
        """
        return 1e3 * self.work / self.median

    @classmethod
    def of(cls, seconds: Sequence[float], work: float = 0.0) -> "Timing":
        """Returns what rounds of so many seconds come to.

        >>> Timing.of([0.002, 0.001, 0.004])
        Timing(median=2.0, p20=1.4, p80=3.2, fastest=1.0, work=0.0)
        """
        ms = torch.tensor(sorted(seconds), dtype=torch.float64) * 1e3
        shares = torch.tensor([0.5, 0.2, 0.8, 0.0], dtype=torch.float64)
        return cls(*(round(x, 6) for x in ms.quantile(shares).tolist()), work)

    @classmethod
    def joined(cls, parts: Sequence["Timing"]) -> "Timing":
        """Returns what the rounds of some processes come to: the spread is that of all, and the
        median that of their medians, whatever their order.

        >>> Timing.joined([Timing(2.0, 1.5, 3.0, 1.0), Timing(4.0, 3.5, 5.0, 3.0)])
        Timing(median=3.0, p20=1.5, p80=5.0, fastest=1.0, work=0.0)
        """
        return cls(
            statistics.median(x.median for x in parts), min(x.p20 for x in parts),
            max(x.p80 for x in parts), min(x.fastest for x in parts), parts[0].work,
        )  # fmt: skip


# {group: {row: its time}}
Times = dict[str, dict[str, Timing]]


def read(path: Path) -> Times:
    """Returns the time of each benchmark in pytest-benchmark's file."""
    times: Times = {}
    for entry in json.loads(path.read_text())["benchmarks"]:
        name = entry["name"].removeprefix("test_").split("[")[0]
        timing = Timing.of(entry["stats"]["data"], entry["extra_info"].get("work", 0.0))
        times.setdefault(entry["group"], {})[name] = timing
    return times


def merge(*parts: Times) -> Times:
    """Returns the rows of all parts, each group once."""
    merged: Times = {}
    for part in parts:
        for group, rows in part.items():
            merged.setdefault(group, {}).update(rows)
    return merged


def joined(parts: Sequence[Times]) -> Times:
    """Returns the rows of processes that timed the same; what one of them timed stays."""
    return {
        group: {
            name: Timing.joined([x[group][name] for x in parts if name in x.get(group, {})])
            for name in rows
        }
        for group, rows in merge(*parts).items()
    }


# What rows are measured by: a copy, or matrix products alone. In place a loss may pass the copy,
# whose target is other memory than its source.
CEILINGS = ("memcpy", "three_products")


def ceiling(rows: Collection[str]) -> str | None:
    """Returns the row of a group that the others are measured by, if it has one."""
    return next((name for name in rows if name.startswith(CEILINGS)), None)


def rate(group: str, t: Timing, rows: Mapping[str, Timing]) -> str:
    """Returns what a row reaches in words, nothing if its work is not known.

    >>> copy = Timing(1.0, 1.0, 1.0, 1.0, work=0.01)
    >>> rate("gae 8x4", copy._replace(median=4.0), {"memcpy_of_x": copy})
    '  2.5 GB/s, 25% of the ceiling'
    """
    if not t.work:
        return ""
    unit = "GFLOP/s" if group.startswith("linear") else "GB/s"
    best = ceiling(rows)
    share = f", {t.rate / rows[best].rate:.0%} of the ceiling" if best and rows[best].work else ""
    return f"  {t.rate:.3g} {unit}{share}"


def table(times: Times) -> str:
    """Returns each group's rows: the median, what multiple of the first row's it is, and the rate
    of the work that cannot be avoided with its share of the ceiling's."""
    lines = []
    for group, rows in times.items():
        first, unit = next(iter(rows.items()))
        lines.append(f"\n{group}{'':<8}(1.00 = {first})")
        for name, t in rows.items():
            spread = f"({t.p20:.3f}–{t.p80:.3f}, fastest {t.fastest:.3f})"
            lines.append(
                f"  {name:<30}{t.median:>11.3f} ms{t.median / unit.median:>9.2f} x  {spread}"
                f"{rate(group, t, rows)}"
            )
    return "\n".join(lines)


# Every file but those that a run of the benchmarks itself writes.
WHAT_IS_TIMED = (":/", ":(top,exclude)benchmarks/results", ":(top,exclude)docs",
                 ":(top,exclude)README.md")  # fmt: skip
# Where a file that no commit holds is timed all the same.
CODE = (":/rlkern", ":/csrc", ":/kernels", ":/benchmarks", ":(top,exclude)benchmarks/results")


def git(*words: str) -> str:
    """Returns what git says of this tree; nothing outside a repository, or without git."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def machine() -> dict[str, object]:
    """Returns what a reader needs to know of where the numbers come from."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *WHAT_IS_TIMED)
    changed += git("status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return {
        "date": date.today().isoformat(),
        "commit": git("describe", "--always") + "-dirty" * bool(changed),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "rlkern": rlkern.__version__,
    }


def refusal(where: Mapping[str, object]) -> str | None:
    """Returns why nothing of a tree can be recorded: nobody could measure its numbers again.

    >>> refusal({"commit": "abc-dirty"})
    'not recorded: commit the changes first (the tree is abc-dirty)'
    >>> refusal({"commit": "abc"})
    """
    commit = str(where["commit"])
    if commit.endswith("-dirty"):
        return f"not recorded: commit the changes first (the tree is {commit})"
    return None if commit else "not recorded: git knows of no commit here"


def forced() -> str | None:
    """Returns why nothing of this process can be recorded: rows of rlkern would be another's."""
    found = [name for name in FORCED if os.environ.get(name)]
    return f"not recorded: {', '.join(found)} is set" if found else None


# A later run on the same kind of machine takes the place of the earlier one; rows of others stay.
IDENTITY = ("cpu", "threads", "isa")


def records(path: Path) -> list[dict]:
    """Returns the lines of a results file, none if it is not there. Raises ValueError if a line
    does not hold what it must, or there is none."""
    found = _lines(path.read_text(encoding="utf-8"), path) if path.is_file() else []
    if path.is_file() and not found:
        raise ValueError(f"{path.name} must have a line at least, got an empty file{_CUT_OFF}")
    return found


def committed(path: Path) -> list[dict]:
    """Returns the lines of a results file that are committed, which a ratio is held to, not to what
    the run before this one wrote; those of the file where there is no repository."""
    if not git("rev-parse", "--git-dir"):
        return records(path)
    # From the folder of the results: the repository may begin above this project.
    return _lines(git("show", f"HEAD:./{path.relative_to(RESULTS.parent).as_posix()}"), path)


_CUT_OFF = ": a run that was cut off may have left it, and git has the whole file"


def _lines(text: str, path: Path) -> list[dict]:
    found = list[dict]()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found.append(json.loads(line))
            why = fields.problem(found[-1], path.name)
        except ValueError:
            why = f"must be a JSON object, got {line[:40]!r}{_CUT_OFF}"
        if why:
            raise ValueError(f"{path.name}, line {number} {why}")
    return found


def write(lines: Sequence[Mapping[str, object]], path: Path) -> None:
    """Writes a results file, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def same_machine(a: dict, b: dict) -> bool:
    """Whether two lines come from the same kind of machine."""
    return all(a[key] == b[key] for key in IDENTITY)


def machines(path: Path) -> list[dict]:
    """Returns the last line of each kind of machine on record, that which wrote last first."""
    found = list[dict]()
    for line in reversed(records(path)):
        if not any(same_machine(line, known) for known in found):
            found.append(line)
    return found


def on_record(lines: list[dict], where: dict[str, object]) -> Times:
    """Returns what a machine has among the lines of a results file."""
    own = [x for x in lines if same_machine(x, where) and "left_out" not in x]
    return {x["group"]: {name: Timing(*t) for name, t in x["ms"].items()} for x in own}


def left_out(path: Path, where: dict[str, object]) -> dict[str, str]:
    """Returns {group: why a machine did not time it}."""
    own = (x for x in records(path) if same_machine(x, where) and "left_out" in x)
    return {x["group"]: x["left_out"] for x in own}


def record(
    times: Times, path: Path, where: dict[str, object], *, complete: bool,
    spared: dict[str, str] | None = None,
) -> None:  # fmt: skip
    """Writes one JSON line per group, in the place of those the same machine left.

    spared  {group: why it was not timed}, which is written, too

    Of a complete run all are replaced, so that no group outlives its benchmark. Raises ValueError
    for a tree of which nothing is recorded.
    """
    if why := refusal(where):
        raise ValueError(why)
    spared = spared or {}

    def replaced(old: dict) -> bool:
        return same_machine(old, where) and (complete or old["group"] in {*times, *spared})

    lines = [old for old in records(path) if not replaced(old)]
    for group, rows in times.items():
        rounded = {name: [round(x, 6) for x in t] for name, t in rows.items()}
        lines.append({**where, "group": group, "ms": rounded})
    lines += [{**where, "group": group, "left_out": why} for group, why in spared.items()]
    if lines:  # else nothing was kept, of a machine that had nothing
        write(lines, path)
