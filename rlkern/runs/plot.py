# SPDX-License-Identifier: Apache-2.0
"""Panels of curves: what happened in a run, on one page."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlkern.runs.metric import Metric

BLUE, ORANGE, GREEN, RED, GREY = "#2f6fb0", "#d9822b", "#3a8f5c", "#b8433f", "#8a8f98"
COLORS = {"blue": BLUE, "orange": ORANGE, "green": GREEN, "red": RED, "grey": GREY}
# By how much weights fall with each step in the average of a long curve; faster in short ones.
_SMOOTHING = 0.07
# Panels side by side.
_WIDE = 3

# Draws the lines of metrics.jsonl into the axes of matplotlib.
Panel = Callable[[Any, list[dict]], None]


def draw_page(
    panels: Sequence[Panel], lines: list[dict], path: Path, *, title: str, x_label: str = "step"
) -> None:
    """Draw panels into a PNG that replaces `path` whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(1, -(-len(panels) // _WIDE))
    figure = Figure(figsize=(13, 3.5 * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    places = list(figure.subplots(rows, _WIDE, squeeze=False).flat)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, draw in zip(places, panels):
        draw(axes, lines)
        axes.set_xlabel(x_label, fontsize=9)
        plain(axes)
    save_png(figure, path)


def plain(axes: Any) -> None:
    """Give axes the look of all plots here: a faint grid, no frame on the right and above."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def save_png(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib to a PNG that replaces `path` whole."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    partial = path.with_name(f".partial-{path.name}")
    partial.write_bytes(image.getvalue())
    partial.replace(path)


def series(lines: list[dict], key: str) -> tuple[list[int], list[float]]:
    """Returns the steps and values of a metric where it was logged.

    >>> series([{"step": 1, "kl": 0.5}, {"step": 2}], "kl")
    ([1], [0.5])
    """
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def smooth(values: list[float]) -> list[float]:
    """Returns the centred running average: weights fall by the same factor on both sides of a step,
    so a curve does not lag behind what it shows.

    >>> smooth([0.0, 1.0, 2.0])[1]
    1.0
    """
    keep = 1 - min(1.0, max(_SMOOTHING, 10 / max(1, len(values))))
    before, after = _weighted(values, keep), _weighted(values[::-1], keep)[::-1]
    # A step's own value is in both sums.
    return [
        (left + right - value) / (left_weight + right_weight - 1)
        for (left, left_weight), (right, right_weight), value in zip(before, after, values)
    ]


def _weighted(values: list[float], keep: float) -> list[tuple[float, float]]:
    """Returns of each value the sum of those up to it, and of their weights, in powers of keep."""
    total, weight, found = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        found.append((total, weight))
    return found


def draw_line(axes: Any, lines: list[dict], key: str, color: str, label: str | None = None) -> None:
    """Draw a metric, faint, and its centred average over it; nothing where it was not logged."""
    steps, values = series(lines, key)
    if values:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        # A line through one point cannot be seen.
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, smooth(values), color=color, linewidth=1.8, label=label, marker=marker)


def legend(axes: Any, **place: Any) -> None:
    """Draw a legend where a curve has a label."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=9, frameon=False, **place)


def logged(*keys: str) -> Callable[[list[dict]], bool]:
    """Returns whether a run has logged one of these metrics."""
    return lambda lines: any(line.get(key) is not None for line in lines for key in keys)


def metric_panel(
    title: str,
    table: Sequence[Metric],
    lines: list[dict],
    limit: Callable[[float, float], tuple[float, float]] | None = None,
) -> Panel | None:
    """Returns what draws the metrics of one panel of a table; None if the run logged none.

    limit  the vertical limits by those that the curves have
    """
    own = [each for each in table if each.panel == title and logged(each.key)(lines)]
    if not own:
        return None

    def draw(axes: Any, lines: list[dict]) -> None:
        axes.set_title(title, fontsize=10, loc="left")
        for each in own:
            draw_line(axes, lines, each.key, COLORS[each.color], each.curve or None)
        if limit is not None:
            axes.set_ylim(*limit(*axes.get_ylim()))
        legend(axes)

    return draw
