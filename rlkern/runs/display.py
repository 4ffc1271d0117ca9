# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

# Columns of the live panel, so that it fits a terminal of 80 characters.
_COLUMNS = 7

_Own = TypeVar("_Own", bound="Display")


def number(form: str, value: float) -> str:
    """Returns the number as text, a negative one that rounds to zero without its sign.

    >>> number("{:.4f}", -1e-9), number("{:.1f}", -0.5)
    ('0.0000', '-0.5')
    """
    text = form.format(value)
    return text.removeprefix("-") if float(text) == 0 else text


def quoted(text: str, most: int) -> str:
    """Returns the beginning of a text on one line, in quotes, with … where it goes on.

    >>> quoted("1 + 1?", 40), quoted("a long one", 4)
    ("'1 + 1?'", "'a lo…'")
    """
    return repr(text if len(text) <= most else f"{text[:most]}…")


class Display:
    """Shows a run; every method may be called in any order, and prints nothing that is not given to
    it.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._live = (
            Live(self._progress, console=self.console, transient=True)
            if self.console.is_terminal
            else None
        )
        self._bar: TaskID | None = None
        self._total = 0
        self._started = time.perf_counter()
        self._first = 0

    def __enter__(self: _Own) -> _Own:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """Print a line."""
        self.console.print(Text(sentence), soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Print a line that stands out."""
        self.console.print(Text(f"warning: {sentence}", style="yellow"), soft_wrap=True)

    def start_bar(self, name: str, total: int, step: int) -> None:
        """Start the progress bar of the run's steps at `step`."""
        self._total, self._first, self._started = total, step, time.perf_counter()
        self._bar = self._progress.add_task(name, total=total, completed=step)

    def advance(self, step: int, panel: Table, plain: str | None) -> None:
        """Move the bar and show a step: the panel on a terminal, elsewhere the line if there is
        one, with the time left."""
        if self._live:
            if self._bar is not None:
                self._progress.update(self._bar, completed=step)
            self._live.update(Group(self._progress, panel))
        elif plain is not None:
            self.say(f"step {step}/{self._total}  {plain}  left {self._left(step)}")

    def _left(self, step: int) -> str:
        done = max(1, step - self._first)
        seconds = (time.perf_counter() - self._started) / done * max(0, self._total - step)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def columns(shown: Sequence[tuple[str, str]]) -> Table:
    """Returns a grid of labels over their numbers, as wide as a terminal of 80 characters."""
    outer = Table.grid()
    for first in range(0, len(shown), _COLUMNS):
        table = Table.grid(padding=(0, 2))
        table.add_row(*(Text(label, style="dim") for label, _ in shown[first:][:_COLUMNS]))
        table.add_row(*(Text(value) for _, value in shown[first:][:_COLUMNS]))
        outer.add_row(table)
    return outer
