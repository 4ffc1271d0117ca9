# SPDX-License-Identifier: Apache-2.0
"""What the records say: numbers of an algorithm over its seeds, and nothing that was not run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkern.compare.record import read

ACCURACY, TOKENS = "eval/accuracy", "sampling/generated_tokens"
ANSWERED = "eval/accuracy_sampled"
SAMPLED, USEFUL = "sampling/groups_sampled", "sampling/useful_groups"
DEGENERATE = "frac_reward_zero_std"
# The held-out accuracy that counts as learned, by what an algorithm learns from.
TARGET = {"rollouts": 0.6, "answers": 0.6, "pairs": 0.8, "judged": 0.8}


@dataclass
class Run:
    """One record: what was run, a point for each evaluation, and the summary of its process."""

    head: dict[str, Any]
    points: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def seed(self) -> int:
        """Returns the seed of the run."""
        return self.head["seed"]

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Returns the steps and the values of a key, where it was measured."""
        found = [(p["step"], p[key]) for p in self.points if p.get(key) is not None]
        return [step for step, _ in found], [value for _, value in found]

    def first(self, key: str, target: float) -> float | None:
        """Returns the value of key at the first evaluation whose accuracy reaches target."""
        reached = [p for p in self.points if p.get(ACCURACY) is not None and p[ACCURACY] >= target]
        return reached[0].get(key, 0.0) if reached else None

    def last(self, key: str) -> float | None:
        """Returns the last value of a key."""
        values = self.curve(key)[1]
        return values[-1] if values else None

    def mean(self, key: str) -> float | None:
        """Returns the mean of a key over the run, each point counted by the steps it stands for."""
        total, weight, before = 0.0, 0.0, 0.0
        for point in self.points:
            if point.get(key) is not None and point["step"] > before:
                total += point[key] * (point["step"] - before)
                weight += point["step"] - before
            before = point["step"]
        return total / weight if weight else None


@dataclass
class Spread:
    """Values of several seeds; `wanted` counts those that could have had one."""

    values: list[float] = field(default_factory=list)
    wanted: int = 0

    @property
    def mean(self) -> float:
        """Returns the mean."""
        return sum(self.values) / len(self.values)

    def text(self, form: Callable[[float], str] = "{:.2f}".format) -> str:
        """Returns the mean, how many seeds it is of if not all, and the range.

        >>> Spread([1.0, 3.0], 3).text(), Spread([], 3).text(), Spread([2.0], 1).text()
        ('2.00 (1.00–3.00), 2 of 3 seeds', 'no seed', '2.00')
        """
        if not self.values:
            return "no seed" if self.wanted else "–"
        low, high = form(min(self.values)), form(max(self.values))
        spread = f" ({low}–{high})" if low != high else ""
        short = len(self.values) < self.wanted
        some = f", {len(self.values)} of {self.wanted} seeds" if short else ""
        return f"{form(self.mean)}{spread}{some}"


def spread(runs: Iterable[Run], value: Callable[[Run], float | None]) -> Spread:
    """Returns what a function finds in each run, those without a value left out."""
    found = [value(run) for run in runs]
    return Spread([x for x in found if x is not None], len(found))


def load(folder: Path) -> dict[str, list[Run]]:
    """Returns the whole records of a folder by algorithm, seeds in order."""
    known: dict[str, list[Run]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = read(path)
        if len(lines) > 2 and "wall_seconds" in lines[-1]:
            known.setdefault(lines[0]["algorithm"], []).append(
                Run(lines[0], lines[1:-1], lines[-1])
            )
    return {name: sorted(runs, key=lambda run: run.seed) for name, runs in known.items()}


def target(learns_from: str) -> float:
    """Returns the accuracy that counts as learned."""
    return TARGET.get(learns_from, 0.6)


def band(runs: list[Run], key: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Returns steps, mean, lowest and highest value of a key where every seed has one."""
    curves = [dict(zip(*run.curve(key))) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    columns = [[curve[step] for curve in curves] for step in steps]
    mean = [sum(column) / len(column) for column in columns]
    return steps, mean, [min(c) for c in columns], [max(c) for c in columns]
