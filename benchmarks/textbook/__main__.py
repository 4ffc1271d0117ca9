# SPDX-License-Identifier: Apache-2.0
"""Redraws figures of the textbook from runs made now.

    python -m benchmarks.textbook [6.2 7.2 12.3 6.4 5.1] [--runs 100]

Writes docs/control/figure_<number>.png and the line of each figure in
benchmarks/results/control/textbook.jsonl: the numbers that the figure is there to show, and its
curves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.textbook import games, numbers, plots, walks
from rlkern.runs.files import write_text

ROOT = Path(__file__).resolve().parents[2]
PICTURES = Path("docs/control")
RECORD = Path("benchmarks/results/control/textbook.jsonl")


class Figure(NamedTuple):
    """A figure: what runs, what it shows, what draws it."""

    run: Callable[[int], list[dict]]
    numbers: Callable[[list[dict]], dict]
    draw: Callable[[list[dict], Path], None]


FIGURES = {
    "6.2": Figure(walks.figure_6_2, numbers.of_6_2, plots.draw_6_2),
    "7.2": Figure(walks.figure_7_2, numbers.of_7_2, plots.draw_7_2),
    "12.3": Figure(walks.figure_12_3, numbers.of_12_3, plots.draw_12_3),
    "6.4": Figure(games.figure_6_4, numbers.of_6_4, plots.draw_6_4),
    # One run, of as many episodes as the textbook has.
    "5.1": Figure(lambda runs: games.figure_5_1(), numbers.of_5_1, plots.draw_5_1),
}


def rounded(value: Any) -> Any:
    """Returns a tree of numbers with four decimals.

    >>> rounded({"a": [0.123456, 3]})
    {'a': [0.1235, 3]}
    """
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def recorded(file: Path) -> dict[str, dict]:
    """Returns the lines of a record by figure."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return {line["figure"]: line for line in map(json.loads, text.splitlines())}


def redraw(names: list[str], runs: int, root: Path = ROOT) -> None:
    """Draw figures and record their numbers under a folder."""
    (root / PICTURES).mkdir(parents=True, exist_ok=True)
    (root / RECORD).parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        figure, begun = FIGURES[name], time.process_time()
        found = figure.run(runs)
        seconds = time.process_time() - begun
        figure.draw(found, root / PICTURES / f"figure_{name.replace('.', '_')}.png")
        line = {"figure": name, "runs": runs, "cpu_seconds": round(seconds, 1),
                "numbers": figure.numbers(found), "curves": found}  # fmt: skip
        lines = {**recorded(root / RECORD), name: rounded(line)}
        texts = [json.dumps(lines[key], ensure_ascii=False) for key in FIGURES if key in lines]
        write_text(root / RECORD, "\n".join(texts) + "\n")
        print(f"figure {name}, {seconds:.0f} s of CPU time")
        print(json.dumps(rounded(line["numbers"]), indent=1, ensure_ascii=False))


def main() -> None:
    """Redraw the figures that the command line names, all if it names none."""
    parser = argparse.ArgumentParser(description="redraw figures of the textbook")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--runs", type=int, default=100, help="runs to take the mean of")
    given = parser.parse_args()
    unknown = [name for name in given.figures if name not in FIGURES]
    if unknown or given.runs < 1:
        parser.error(f"figures are {', '.join(FIGURES)}, and runs at least 1")
    redraw(given.figures or list(FIGURES), given.runs)


if __name__ == "__main__":
    main()
