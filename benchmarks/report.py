# SPDX-License-Identifier: Apache-2.0
"""Turns pytest-benchmark's file into the table of ratios, the checks and the committed rows.

A time is the median of its rounds; beside it stand the fastest round, and between what a fifth and
four fifths of the rounds lie.
"""

import json
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

import rlkern
from rlkern.doctor import processor

RESULTS = Path(__file__).parent / "results"


class Timing(NamedTuple):
    """Milliseconds of the rounds of a benchmark: their median, p20, p80, and the fastest."""

    median: float
    p20: float
    p80: float
    fastest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Returns what rounds of so many seconds come to.

        >>> Timing.of([0.002, 0.001, 0.004])
        Timing(median=2.0, p20=1.4, p80=3.2, fastest=1.0)
        """
        ms = torch.tensor(sorted(seconds), dtype=torch.float64) * 1e3
        shares = torch.tensor([0.5, 0.2, 0.8, 0.0], dtype=torch.float64)
        return cls(*(round(x, 6) for x in ms.quantile(shares).tolist()))


# {group: {row: its time}}
Times = dict[str, dict[str, Timing]]


class Check(NamedTuple):
    """A ratio of two rows of a group, and what it is to be.

    promised  the project gives its word: a miss makes the run fail. What is not promised is a goal,
              whose miss is printed alike, but the yardstick itself moves (LOG.md)
    """

    group: str
    above: str
    below: str
    sign: str
    limit: float
    promised: bool

    def ratio(self, times: Times) -> float | None:
        """Returns the ratio of the medians, or None if a row of it was not measured."""
        spread = self.spread(times)
        return None if spread is None else spread[1]

    def spread(self, times: Times) -> tuple[float, float, float] | None:
        """Returns the least and the largest ratio that p20 and p80 leave, the median's between."""
        rows = times.get(self.group, {})
        if self.above not in rows or self.below not in rows:
            return None
        a, b = rows[self.above], rows[self.below]
        return a.p20 / b.p80, a.median / b.median, a.p80 / b.p20

    def holds(self, ratio: float) -> bool:
        """Whether the ratio is on the right side of the limit."""
        return ratio <= self.limit if self.sign == "<=" else ratio >= self.limit


def _main(dtype: str) -> str:
    return f"policy_loss 512x151936 {dtype}"


# (row, its divisor, sign, limits in float32 and bfloat16), of 512 × 151936.
GOALS = (
    ("rlkern_in_place", "memcpy_of_the_logits", "<=", 1.3, 2.0),
    ("rlkern_forward_only", "memcpy_of_the_logits", "<=", 1.0, 1.5),
    ("rlkern_logprob_and_entropy", "memcpy_of_the_logits", "<=", 1.0, 1.5),
    ("rlkern_gspo_in_place", "memcpy_of_the_logits", "<=", 2.0, 3.5),
)
PROMISES = (
    ("rlkern_in_place", "memcpy_of_the_logits", "<=", 1.5, 2.8),
    ("eager", "rlkern_in_place", ">=", 6.0, 14.0),
    ("torch_compile", "rlkern_in_place", ">=", 8.0, 5.0),
    ("rlkern_in_place_avx2", "rlkern_in_place_best", "<=", 2.0, 2.0),
)
# At every other vocabulary of a model the loss beats torch.compile, at the tiny one eager.
BEATEN = {
    "torch_compile": (
        "8192x1000", "8192x4096", "2048x32000", "1024x50257", "512x129920", "256x262144",
    ),
    "eager": ("1920x21",),
}  # fmt: skip
DTYPES = ("float32", "bfloat16")
# (rows of hidden states, row, its divisor, sign, limits), of H = 896 and V = 151 936.
LINEAR = (
    (512, "rlkern", "three_products", "<=", 1.08, 1.25),
    (512, "rlkern_frozen_head", "two_products", "<=", 1.08, 1.25),
    *((rows, "eager", "rlkern", ">=", 1.0, 1.0) for rows in (64, 128, 512)),
)
# Half the bandwidth of a memcpy of the bytes that must move, and never slower than eager.
SWEPT = ("rlkern_gae", "rlkern_gae_into_memory_in_use")
SCANS = ("1x1", "8x4096", "512x4096", "8192x1024", "1x1000000")
CHECKS = [
    Check(_main(dtype), above, below, sign, limits[i], table is PROMISES)
    for table in (GOALS, PROMISES)
    for above, below, sign, *limits in table
    for i, dtype in enumerate(DTYPES)
] + [
    Check(f"policy_loss {size} {dtype}", row, "rlkern_in_place", ">=", 1.0, True)
    for row, sizes in BEATEN.items()
    for size in sizes
    for dtype in DTYPES
]
CHECKS += [
    Check(f"linear_policy_loss {n}x896x151936 {dtype}", above, below, sign, limits[i], False)
    for n, above, below, sign, *limits in LINEAR
    for i, dtype in enumerate(DTYPES)
]
CHECKS += [
    Check("gae 8192x1024", row, "memcpy_of_the_bytes_moved", "<=", 2.0, False) for row in SWEPT
] + [Check(f"gae {shape}", "eager_gae", "rlkern_gae", ">=", 1.0, False) for shape in SCANS]


# No slower than what a researcher would write, where a call costs more than its arithmetic.
CALLS = ("32x2", "256x6", "2048x18", "4096x2", "4096x64")
CHECKS += [
    Check(f"calls {op} {size}", f"{other}_{op}", f"rlkern_{op}", ">=", 1.0, False)
    for op in ("policy_loss", "td_loss")
    for size in CALLS
    for other in ("eager", "torch_compile")
]


class Verdict(NamedTuple):
    """What a check found."""

    check: Check
    ratio: float

    @property
    def held(self) -> bool:
        """Whether the ratio is what it is to be."""
        return self.check.holds(self.ratio)

    @property
    def broken(self) -> bool:
        """Whether a promise does not hold."""
        return self.check.promised and not self.held

    def __str__(self) -> str:
        group, above, below, sign, limit, promised = self.check
        label = "held" if self.held else "MISSED" if promised else "MISSED (a goal)"
        return f"{label:<16}{group}: {above} / {below} = {self.ratio:.2f} ({sign} {limit})"


def fallen(times: Times, before: Times) -> list[str]:
    """Returns a line for each ratio that is worse than on record by more than both their spreads.

    >>> def of(ms):
    ...     copy, ours = Timing(1, 1, 1, 1), Timing(ms, ms, ms, ms)
    ...     rows = {"memcpy_of_the_logits": copy, "rlkern_in_place": ours}
    ...     return {"policy_loss 512x151936 float32": rows}
    >>> [line.split(" = ")[1] for line in fallen(of(4), of(2))]
    ['4.00 (4.00–4.00), on record 2.00 (2.00–2.00)']
    """
    lines = []
    for check in dict.fromkeys(CHECKS):
        now, then = check.spread(times), check.spread(before)
        if now is None or then is None:
            continue
        worse = now[0] > then[2] if check.sign == "<=" else now[2] < then[0]
        if worse:
            lines.append(
                f"FELL{'':<12}{check.group}: {check.above} / {check.below} = {now[1]:.2f}"
                f" ({now[0]:.2f}–{now[2]:.2f}), on record {then[1]:.2f}"
                f" ({then[0]:.2f}–{then[2]:.2f})"
            )
    return list(dict.fromkeys(lines))


def read(path: Path) -> Times:
    """Returns the time of each benchmark in pytest-benchmark's file."""
    times: Times = {}
    for entry in json.loads(path.read_text())["benchmarks"]:
        name = entry["name"].removeprefix("test_").split("[")[0]
        times.setdefault(entry["group"], {})[name] = Timing.of(entry["stats"]["data"])
    return times


def merge(*parts: Times) -> Times:
    """Returns the rows of all parts, each group once."""
    merged: Times = {}
    for part in parts:
        for group, rows in part.items():
            merged.setdefault(group, {}).update(rows)
    return merged


def table(times: Times) -> str:
    """Returns each group's rows: the median, and what multiple of the first row's it is."""
    lines = []
    for group, rows in times.items():
        first, unit = next(iter(rows.items()))
        lines.append(f"\n{group}{'':<8}(1.00 = {first})")
        for name, t in rows.items():
            spread = f"({t.p20:.3f}–{t.p80:.3f}, fastest {t.fastest:.3f})"
            lines.append(
                f"  {name:<28}{t.median:>11.3f} ms{t.median / unit.median:>9.2f} x  {spread}"
            )
    return "\n".join(lines)


def verdicts(times: Times) -> list[Verdict]:
    """Returns the ratio of each check whose rows were measured."""
    ratios = [(check, check.ratio(times)) for check in CHECKS]
    return [Verdict(check, ratio) for check, ratio in ratios if ratio is not None]


def machine() -> dict[str, object]:
    """Returns what a reader needs to know of where the numbers come from."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    return {
        "date": date.today().isoformat(),
        "commit": commit,
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "rlkern": rlkern.__version__,
    }


# A later run on the same machine with the same versions takes the place of the earlier one.
IDENTITY = ("cpu", "threads", "isa", "torch", "rlkern")


def records(path: Path) -> list[dict]:
    """Returns the lines of a results file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def on_record(path: Path, where: dict[str, object]) -> Times:
    """Returns what a machine has on record."""
    lines = [x for x in records(path) if all(x[key] == where[key] for key in IDENTITY)]
    return {x["group"]: _timings(x) for x in lines}


def _timings(line: dict) -> dict[str, Timing]:
    """Returns the times of a line; those from before medians were kept have the fastest round
    alone, without a spread."""
    if "min_ms" in line:
        return {name: Timing(x, x, x, x) for name, x in line["min_ms"].items()}
    return {name: Timing(*t) for name, t in line["ms"].items()}


def record(times: Times, path: Path, where: dict[str, object], *, complete: bool) -> None:
    """Writes one JSON line per group, in the place of those the same machine left.

    Of a complete run all are replaced, so that no group outlives its benchmark. Raises ValueError
    for a tree with changes that are not committed: nobody could measure its numbers again.
    """
    if str(where["commit"]).endswith("-dirty"):
        raise ValueError(f"not recorded: commit the changes first (the tree is {where['commit']})")

    def replaced(old: dict) -> bool:
        same = all(old[key] == where[key] for key in IDENTITY)
        return same and (complete or old["group"] in times)

    lines = [old for old in records(path) if not replaced(old)]
    for group, rows in times.items():
        rounded = {name: [round(x, 4) for x in t] for name, t in rows.items()}
        lines.append({**where, "group": group, "ms": rounded})
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
