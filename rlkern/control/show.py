# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a control run."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from rlkern.control.group import Settings
from rlkern.control.metrics import METRICS
from rlkern.runs import display as base
from rlkern.runs.display import columns, number


class Display(base.Display):
    """Shows a control run."""

    def begin(self, settings: Settings, step: int) -> None:
        """Start the progress of the environment steps."""
        self.start_bar(f"{settings.algorithm} {settings.env}", settings.steps, step)

    def step(self, step: int, values: dict[str, float]) -> None:
        """Show what was measured since the last line."""
        shown = [
            (each.label, number(each.form, values[each.key]))
            for each in METRICS
            if each.label and each.key in values
        ]
        self.advance(step, columns(shown), "  ".join(f"{label} {text}" for label, text in shown))

    def final(self, run: Path, summary: dict) -> None:
        """Print the table that a run ends with."""
        table = Table(title=run.name, title_justify="left")
        row = {
            "return": f"{summary['eval/return']:.1f} ± {summary['eval/return_std']:.1f}",
            "best": f"{summary['best_return']:.1f} (step {summary['best_step']})",
            "length": f"{summary['eval/length']:.0f}",
            "steps": str(summary["steps"]),
            "seconds": f"{summary['wall_seconds']:.1f}",
        }
        if "eval/rmse" in summary:
            row["RMSE"] = f"{summary['eval/rmse']:.4f}"
        for name in row:
            table.add_column(name, justify="right")
        table.add_row(*row.values())
        self.console.print(table)
        self.say(f"everything is in {run}")
