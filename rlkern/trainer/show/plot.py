# SPDX-License-Identifier: Apache-2.0
"""curves.png: what happened in a run, on one page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkern.runs.plot import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Panel,
    draw_line,
    draw_page,
    legend,
    logged,
    metric_panel,
    series,
    smooth,
)
from rlkern.trainer.metrics import METRICS
from rlkern.trainer.show.keys import reward_functions


def plot_curves(lines: list[dict], path: Path, *, title: str) -> None:
    """Draw the curves of a run's metric lines into a PNG that replaces `path` whole: a panel for
    each thing that the run has measured.
    """
    draw_page(_panels(lines), lines, path, title=title)


_COLORS = (BLUE, ORANGE, GREEN, RED, GREY)


def _accuracy(axes: Any, lines: list[dict]) -> None:
    rewarded = any("eval/reward" in key for line in lines for key in line)
    title = "reward on held-out data" if rewarded else "right on held-out data"
    axes.set_title(title, fontsize=10, loc="left")
    curves = {
        key[5:].removeprefix("accuracy_"): series(lines, key)
        for key in dict.fromkeys(key for line in lines for key in line)
        if re.fullmatch(r"eval/((accuracy|reward)_\w+|(pair|token)_accuracy|pass@(?!1$)\d+)", key)
    }
    # Dashed where the colours begin again: every pass@k that was asked for has its curve.
    styles = itertools.cycle(itertools.product(("o-", "o--", "o:"), _COLORS))
    for (label, (steps, values)), (style, color) in zip(curves.items(), styles):
        axes.plot(steps, values, style, color=color, linewidth=1.8, markersize=4, label=label)
        for index in sorted({0, len(values) - 1}):
            axes.annotate(
                f"{values[index]:.2f}",
                (steps[index], values[index]),
                textcoords="offset points",
                xytext=(7 if index else -7, -3),
                ha="left" if index else "right",
                fontsize=9,
                color=color,
            )
    if all(0 <= value <= 1 for _, values in curves.values() for value in values):
        axes.set_ylim(0, 1.08)
    axes.margins(x=0.14)
    legend(axes, loc="best")


def _gap(axes: Any, lines: list[dict]) -> None:
    """Draw two rewards on scales of their own: what is trained on, and what is meant."""
    first, second = reward_functions(lines[-1])[:2]
    axes.set_title(f"mean reward by {first} and by {second}", fontsize=10, loc="left")
    other = axes.twinx()
    for place, name, color in ((axes, first, BLUE), (other, second, ORANGE)):
        draw_line(place, lines, f"rewards/{name}/mean", color, name)
        place.set_ylabel(name, color=color, fontsize=9)
        place.tick_params(axis="y", colors=color, labelsize=9)
    other.spines["top"].set_visible(False)


_LIMITS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "pairs of a batch: share with the chosen ahead": lambda low, high: (0.0, 1.04),
    # The first fit can be arbitrarily bad, and is not what one looks for.
    "value function: explained variance, and loss": lambda low, high: (
        max(-1.0, low),
        min(2.0, high),
    ),
    "entropy and KL to the start, nats": lambda low, high: (0.0, high),
    "share of clipped tokens": lambda low, high: (0.0, 1.08 * max(high, 1e-9)),
    "length of the answers, tokens": lambda low, high: (0.0, 1.08 * max(high, 1e-9)),
    "gradient norm before clipping": lambda low, high: (0.0, high),
}


def _times(axes: Any, lines: list[dict]) -> None:
    axes.set_title("seconds of a step", fontsize=10, loc="left")
    names = ("rollout", "reward", "score", "loss", "step")
    columns = {name: series(lines, f"time/{name}") for name in names}
    columns = {
        name: column for name, column in columns.items() if column[1] and max(column[1]) > 1e-3
    }
    colors = dict(zip(names, (BLUE, GREY, GREEN, ORANGE, RED), strict=True))
    if columns:
        steps = next(iter(columns.values()))[0]
        stacked = [smooth(values) for _, values in columns.values()]
        shades = [colors[name] for name in columns]
        axes.stackplot(steps, *stacked, labels=list(columns), colors=shades, alpha=0.85)
        legend(axes, ncols=2, loc="upper right")
        axes.set_ylim(0, 1.35 * max(map(sum, zip(*stacked, strict=True))))


def _sampled_on(lines: list[dict]) -> bool:
    """Returns whether a run sampled more groups than it trained on."""
    last = lines[-1]
    trained = last.get("sampling/groups_trained", 0) * last["step"]
    return last.get("sampling/groups_sampled", 0) > trained > 0


# Panels of the table that a run may have logged and that would show nothing.
_IDLE: dict[str, Callable[[list[dict]], bool]] = {
    "loss": logged("reward"),
    "groups sampled so far, and those with unequal rewards": lambda lines: not _sampled_on(lines),
    "share of clipped tokens": lambda lines: (
        not any(line.get("clip_ratio/region_mean") for line in lines)
    ),
    "length of the answers, tokens": lambda lines: any(
        line.get("clip_ratio/region_mean") for line in lines
    ),
}


# The panel of the reward, after which the rewards of single functions are drawn.
_REWARD = next(each.panel for each in METRICS if each.key == "reward")


def _panels(lines: list[dict]) -> list[Panel]:
    """Returns what is drawn of a run, in the order of the table of metrics."""
    found: list[Panel] = []
    if logged("eval/accuracy")(lines):
        found.append(_accuracy)
    for title in dict.fromkeys(each.panel for each in METRICS if each.panel):
        draw = (
            None
            if _IDLE.get(title, lambda lines: False)(lines)
            else metric_panel(title, METRICS, lines, _LIMITS.get(title))
        )
        if draw is not None:
            found.append(draw)
        if title == _REWARD and len(reward_functions(lines[-1])) > 1:
            found.append(_gap)
    return found + ([_times] if logged("time/step")(lines) else [])
