# SPDX-License-Identifier: Apache-2.0
"""`rlkern show`: what a run was, how it went, and what its model said, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlkern.cli.guard import guarded
from rlkern.cli.parser import Parser, given

if TYPE_CHECKING:
    from rlkern.trainer.settings import Settings


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern show`."""
    return guarded("show", lambda: _show(arguments))


def _parser() -> Parser:
    parser = Parser(
        prog="rlkern show",
        description="Show a run: its settings that differ from the defaults, the ends of its"
        " curves, its held-out numbers, and completions of a step: the first, or those of the"
        " highest or lowest reward.",
    )
    take = parser.add_argument
    take("run", help="run directory")
    take("--step", type=int, metavar="N", help="whose completions (default: the last written)")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--best", action="store_true", help="highest reward first")
    order.add_argument("--worst", action="store_true", help="lowest reward first")
    take("--limit", type=int, default=4, metavar="N", help="completions (default 4); 0 shows none")
    return parser


def _show(arguments: list[str]) -> int:
    flags = given(_parser(), arguments)
    if flags is None:
        return 0
    from rich.console import Console

    from rlkern.runs.errors import UserError
    from rlkern.runs.logs import read_metrics
    from rlkern.trainer.show import summary

    if flags["limit"] < 0:
        raise UserError(f"limit must be 0 or more, got {flags['limit']}")
    which = next((key for key in ("step", "best", "worst") if flags[key] not in (None, False)), "")
    if which and not flags["limit"]:
        raise UserError(f"{which} chooses completions, and limit 0 shows none: leave one out")
    folder = Path(flags["run"])
    settings = _settings(folder)
    rows = _rows(folder, settings, flags["step"]) if flags["limit"] else None
    console, lines = Console(highlight=False), read_metrics(folder)
    summary.title(console, folder, settings, lines)
    summary.settings_table(console, settings)
    summary.curves_table(console, lines)
    summary.held_out_table(console, lines)
    if rows:
        kind = "best" if flags["best"] else "worst" if flags["worst"] else "first"
        summary.completions(console, rows, kind, flags["limit"])
    return 0


def _settings(folder: Path) -> Settings:
    """Returns the settings of a run; Raises UserError for anything else."""
    from rlkern.runs.errors import UserError
    from rlkern.runs.folder import CONFIG
    from rlkern.trainer.settings.document import saved

    if (folder / CONFIG).is_file():
        return saved(folder / CONFIG)
    stages = ", ".join(str(stage.parent) for stage in sorted(folder.glob(f"*/{CONFIG}")))
    hint = f"; show one of {stages}" if stages else ""
    raise UserError(f"{folder} must be a run directory, it holds no {CONFIG}{hint}")


def _rows(folder: Path, settings: Settings, step: int | None) -> list[dict]:
    """Returns the completions of a step, of the last one without a step; none where the run wrote
    none. Raises UserError for a step that has none."""
    from rlkern.runs.errors import UserError
    from rlkern.runs.parquet import check_installed, read_step, steps_in
    from rlkern.trainer.show.keys import COMPLETIONS

    steps = steps_in(folder / COMPLETIONS)
    if step is not None and step not in steps:
        written = ", ".join(map(str, steps)) or "none"
        why = "" if settings.declared.online else ": it learned from given answers"
        raise UserError(f"step must be one that {folder} wrote ({written}), got {step}{why}")
    if not steps:
        return []
    check_installed("rlkern show", "--limit 0")
    return read_step(folder / COMPLETIONS, steps[-1] if step is None else step)
