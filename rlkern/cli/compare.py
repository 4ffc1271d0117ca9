# SPDX-License-Identifier: Apache-2.0
"""`rlkern compare`: several algorithms and seeds on one task, and the pages of what they did."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkern.cli.guard import guarded
from rlkern.cli.parser import Parser, given
from rlkern.runs.errors import UserError

if TYPE_CHECKING:
    from rlkern.compare.plan import Comparison

DEFAULT = "configs/compare.yaml"


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern compare`."""
    return guarded("compare", lambda: _compare(arguments))


def _compare(arguments: list[str]) -> int:
    """Returns the exit code: 0 when every run is recorded and the pages are written, 1 when a run
    failed. Raises UserError for what cannot be compared.
    """
    flags = given(_parser(), arguments)
    if flags is None:
        return 0
    from rlkern.compare.launch import compare
    from rlkern.compare.plan import load

    file, again = flags.pop("config"), flags.pop("again")
    comparison = _overridden(load(file), flags)
    failed = compare(comparison, again=again, say=lambda line: print(line, flush=True))
    from rlkern.compare.pages import write

    write(Path(comparison.records), Path(comparison.out), notes=comparison.notes)
    print(f"wrote {Path(comparison.out) / 'algorithms.md'} and a page for each algorithm")
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(failed)}")
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser(
        prog="rlkern compare",
        description="Run several algorithms and seeds on one task from one start under one budget,"
        " keep what they measured, and write the pages. Runs on record with the same settings are"
        " skipped, so a comparison that was stopped goes on where it was.",
    )
    take = parser.add_argument
    take("--config", default=DEFAULT, metavar="FILE", help=f"YAML file (default {DEFAULT})")
    take("--algorithms", metavar="X", help="names with commas (default: those of the file)")
    take("--seeds", metavar="X", help="whole numbers with commas (default: those of the file)")
    take("--jobs", type=int, metavar="N", help="runs at a time, each with one thread")
    take("--runs_dir", metavar="X", help="folder of the run directories")
    take("--records", metavar="X", help="folder of the JSON lines that are kept")
    take("--out", metavar="X", help="folder of algorithms.md and algorithms/")
    take("--again", action="store_true", help="run what is on record again")
    return parser


def _overridden(comparison: Comparison, flags: dict[str, Any]) -> Comparison:
    """Returns the comparison with the flags over the file."""
    changes = {key: value for key, value in flags.items() if value is not None}
    if "algorithms" in changes:
        changes["algorithms"] = _words("algorithms", "names", changes["algorithms"])
    if "seeds" in changes:
        words = _words("seeds", "whole numbers", changes["seeds"])
        changes["seeds"] = [_whole(word) for word in words]
    comparison = dataclasses.replace(comparison, **changes)
    if comparison.jobs < 1:
        raise UserError(f"jobs must be at least 1, got {comparison.jobs}")
    if not comparison.seeds:
        raise UserError("seeds must hold at least one whole number, got none")
    return comparison


def _words(key: str, what: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if "" in words:
        raise UserError(f"{key} must be {what} with commas between, got {text!r}")
    return words


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise UserError(f"seeds must be whole numbers with commas between, got {word!r}") from None
