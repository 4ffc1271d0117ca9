# SPDX-License-Identifier: Apache-2.0
"""A run in the terminal, after it: settings, ends of curves, held-out numbers, completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlkern.runs.display import number
from rlkern.runs.plot import series, smooth
from rlkern.runs.settings.layers import dotted
from rlkern.trainer.metrics import METRICS
from rlkern.trainer.settings import Settings, dump, of
from rlkern.trainer.show.display import measured

KEY = "eval/accuracy"
_BARS = "▁▂▃▄▅▆▇█"
# Characters of a curve, and the longest question or completion.
_WIDE, _LONG = 24, 600
# A metric that moves by less has no curve: a loss that is 0 but for rounding.
_FLAT = 1e-6


def title(console: Console, run: Path, settings: Settings, lines: Sequence[dict]) -> None:
    """Print which run it is and how far it is."""
    step = lines[-1]["step"] if lines else 0
    seconds = f", {lines[-1].get('seconds') or 0:.0f} s" if lines else ""
    model = "/".join(Path(settings.model).parts[-2:])
    line = Text(f"{run.resolve().name}: ", style="bold")
    line.append(f"{settings.algorithm}, {model}, {settings.asked}")
    console.print(line.append(f"; step {step} of {settings.steps}{seconds}", style="dim"))


def differing_settings(settings: Settings) -> list[tuple[str, str, str]]:
    """Returns (key, value, default) of the settings that are not the algorithm's own."""
    same = {"algorithm": settings.algorithm, "model": settings.model}
    data = {"train": settings.data.train} if settings.data.train is not None else {}
    plain = dotted(Settings, dump(of(**same, data=data)))
    own = dotted(Settings, dump(settings))
    differ = [key for key, value in own.items() if value != plain.get(key)]
    return [
        *[("data.train", path, "null") for path in data.values()],
        *[(key, _brief(own[key]), _brief(plain.get(key))) for key in differ if key != "name"],
    ]


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_brief, value))
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def settings_table(console: Console, settings: Settings) -> None:
    """Print the settings that differ from the defaults."""
    table = _table("settings that differ from the defaults", ("key", "value", "default"))
    table.columns[0].no_wrap = True
    for row in differing_settings(settings):
        table.add_row(*map(Text, row))
    console.print(table if table.rows else Text("every setting is the default"))


def curves_table(console: Console, lines: list[dict]) -> None:
    """Print the first and the last value of each metric that the terminal shows, and its curve."""
    table = _table("curves", ("", "first", "last", "smoothed"), numbers=(1, 2))
    for each in METRICS:
        _, values = series(lines, each.key) if each.label else ([], [])
        if values:
            ends = (number(each.form, values[0]), number(each.form, values[-1]))
            flat = max(values) - min(values) < _FLAT
            table.add_row(Text(each.label), *ends, "" if flat else curve(smooth(values)))
    if table.rows:
        console.print(table)


def curve(values: Sequence[float]) -> str:
    """Returns values as bars between the least and the greatest of them.

    >>> curve([0.0, 0.5, 1.0]), curve([2.0, 2.0])
    ('▁▅█', '▁▁')
    """
    places = [round(i * (len(values) - 1) / max(1, _WIDE - 1)) for i in range(_WIDE)]
    shown = [values[i] for i in places] if len(values) > _WIDE else values
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * 7 + 1e-9)] for value in shown)


def evaluations(lines: Sequence[dict]) -> dict[str, dict]:
    """Returns the metrics of a run's first, best and last evaluation, by what they are called; one
    that is two of them comes once.

    >>> lines = [{"step": n, "eval/accuracy": x} for n, x in ((0, 0.1), (5, 0.4), (9, 0.3))]
    >>> list(evaluations(lines)), list(evaluations(lines[:2]))
    (['before', 'best, step 5', 'last, step 9'], ['before', 'best and last, step 5'])
    """
    found = [line for line in lines if line.get(KEY) is not None]
    if not found:
        return {}
    if len(found) == 1:
        return {"before": found[0]}
    top, last = max(found[1:], key=lambda line: line[KEY]), found[-1]
    both = {"best and last": last} if top is last else {"best": top, "last": last}
    named = {f"{name}, step {line['step']}": line for name, line in both.items()}
    return {"before": found[0], **named}


def held_out_table(console: Console, lines: Sequence[dict]) -> None:
    """Print the held-out numbers of the first, the best and the last evaluation."""
    found = evaluations(lines)
    if not found:
        return
    table = _table("held out", ("", *found), numbers=range(1, 4))
    columns = [dict(measured(line)) for line in found.values()]
    for label in columns[0]:
        values = (column.get(label) for column in columns)
        table.add_row(Text(label), *("" if x is None else number("{:.3f}", x) for x in values))
    console.print(table)


def completions(console: Console, rows: list[dict[str, Any]], kind: str, limit: int) -> None:
    """Print completions of a step: the first, best or worst of them by their shaped reward, those
    without one last."""
    if kind != "first":
        sign = -1 if kind == "best" else 1
        known = [row for row in rows if row["shaped_reward"] is not None]
        rest = [row for row in rows if row["shaped_reward"] is None]
        ordered = sorted(known, key=lambda row: sign * row["shaped_reward"]) + rest
    else:
        ordered = rows
    shown = ordered[:limit]
    which = f"{kind} {len(shown)}" if len(shown) > 1 else kind
    heading = f"step {rows[0]['step']}: the {which} of {len(rows)} completions"
    console.print(Text(heading, style="bold"))
    for row in shown:
        console.print(Padding(_block(row), (0, 0, 0, 2)))


def _block(row: dict[str, Any]) -> Table:
    """Returns a completion under its question, with its numbers."""
    block = Table.grid(padding=(0, 1))
    block.add_column(style="dim", no_wrap=True)
    block.add_column(overflow="fold")
    block.add_row("question", Text(_cut(row["question"]), style="cyan"))
    block.add_row("answer", Text(_cut(row["completion"])))
    if row["answer"]:
        block.add_row("right", Text(_cut(row["answer"]), style="green"))
    names = [name for name in row if name.startswith("rewards/")]
    parts = [("reward", row["reward"])]
    if row["shaped_reward"] != row["reward"]:
        parts.append(("shaped", row["shaped_reward"]))
    if len(names) > 1:
        parts += [(name.removeprefix("rewards/"), row[name]) for name in names]
    parts.append(("advantage", row["advantage"]))
    said = ", ".join(f"{name} {_number(value)}" for name, value in parts)
    ended = ", cut off" if row["cut_off"] else ""
    block.add_row("", Text(f"{said}, {row['length']} tokens{ended}", style="dim"))
    block.add_row("")
    return block


def _number(value: float | None) -> str:
    return "none" if value is None else number("{:.3g}", value)


def _cut(text: str) -> str:
    """Returns a text that is not too long to read, of a longer one its beginning and its length."""
    return text if len(text) <= _LONG else f"{text[:_LONG]}… ({len(text)} characters)"


def _table(name: str, columns: Sequence[str], numbers: Sequence[int] = ()) -> Table:
    table = Table(title=name, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        side: Any = "right" if place in numbers else "left"
        table.add_column(column, justify=side, overflow="fold")
    return table
