# SPDX-License-Identifier: Apache-2.0
"""The command `rlkern compare`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rlkern.compare.launch import compare
from rlkern.compare.plan import Comparison, load
from rlkern.runs.errors import UserError

DEFAULT = "configs/compare.yaml"


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when every run is recorded and the pages are written, 1 when a run
    failed; raises one sentence for what cannot be compared.
    """
    asked = _parser().parse_args(arguments)
    comparison = _overridden(load(asked.config), asked)
    failed = compare(comparison, again=asked.again, say=lambda line: print(line, flush=True))
    from rlkern.compare.pages import write

    write(Path(comparison.records), Path(comparison.out), notes=comparison.notes)
    print(f"wrote {Path(comparison.out) / 'algorithms.md'} and a page for each algorithm")
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(failed)}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlkern compare",
        description="Run several algorithms and seeds on one task from one start under one budget,"
        " keep what they measured, and write the pages. Runs on record with the same settings are"
        " skipped, so a comparison that was stopped goes on where it was.",
    )
    parser.add_argument("--config", default=DEFAULT, help=f"YAML file; {DEFAULT} unless given")
    parser.add_argument("--algorithms", help="names with commas; those of the file unless given")
    parser.add_argument("--seeds", help="whole numbers with commas")
    parser.add_argument("--jobs", type=int, help="runs at a time, each with one thread")
    parser.add_argument("--runs-dir", help="folder of the run directories")
    parser.add_argument("--records", help="folder of the JSON lines that are kept")
    parser.add_argument("--out", help="folder of algorithms.md and algorithms/")
    parser.add_argument("--again", action="store_true", help="run what is on record again")
    return parser


def _overridden(comparison: Comparison, asked: argparse.Namespace) -> Comparison:
    """Returns the comparison with the flags over the file."""
    lists = {
        "algorithms": _words(asked.algorithms),
        "seeds": [_whole(word) for word in _words(asked.seeds)],
    }
    flags = {key: getattr(asked, key) for key in ("jobs", "runs_dir", "records", "out")}
    given = {key: value for key, value in {**lists, **flags}.items() if value not in (None, [])}
    comparison = dataclasses.replace(comparison, **given)
    if comparison.jobs < 1:
        raise UserError(f"jobs must be at least 1, got {comparison.jobs}")
    if not comparison.seeds:
        raise UserError("seeds must hold at least one whole number, got none")
    return comparison


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise UserError(f"seeds must be whole numbers with commas, got {word!r}") from None
