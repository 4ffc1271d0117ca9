# SPDX-License-Identifier: Apache-2.0
"""curves.png: what happened in a run, on one page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkern.trainer.metrics import METRICS
from rlkern.trainer.show.keys import reward_functions

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#2f6fb0", "#d9822b", "#3a8f5c", "#b8433f", "#8a8f98"
# Weight of the newest value in a running average of a long curve; short curves take more.
_SMOOTHING = 0.07
# Panels side by side.
_WIDE = 3
COLORS = {"blue": _BLUE, "orange": _ORANGE, "green": _GREEN, "red": _RED, "grey": _GREY}


def plot_curves(lines: list[dict], path: Path, *, title: str) -> None:
    """Draw the curves of a run's metric lines into a PNG that replaces `path` whole: a panel for
    each thing that the run has measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(lines)
    rows = max(1, -(-len(panels) // _WIDE))
    figure = Figure(figsize=(13, 3.5 * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    places = list(figure.subplots(rows, _WIDE, squeeze=False).flat)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, draw in zip(places, panels):
        draw(axes, lines)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
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
    """Returns the running average, unbiased at its start.

    >>> smooth([1.0, 1.0])
    [1.0, 1.0]
    """
    total = weight = 0.0
    averaged = []
    new = min(1.0, max(_SMOOTHING, 10 / max(1, len(values))))
    for value in values:
        total = (1 - new) * total + new * value
        weight = (1 - new) * weight + new
        averaged.append(total / weight)
    return averaged


def _line(axes: Any, lines: list[dict], key: str, color: str, label: str | None = None) -> None:
    steps, values = series(lines, key)
    if values:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values), color=color, linewidth=1.8, label=label)


def _legend(axes: Any, **place: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=9, frameon=False, **place)


def _accuracy(axes: Any, lines: list[dict]) -> None:
    rewarded = any("eval/reward" in key for line in lines for key in line)
    title = "reward on held-out data" if rewarded else "right on held-out data"
    axes.set_title(title, fontsize=10, loc="left")
    curves = {
        key[5:].removeprefix("accuracy_"): series(lines, key)
        for key in dict.fromkeys(key for line in lines for key in line)
        if re.fullmatch(r"eval/((accuracy|reward)_\w+|(pair|token)_accuracy|pass@(?!1$)\d+)", key)
    }
    colors = (_BLUE, _ORANGE, _GREEN, _RED, _GREY)
    for (label, (steps, values)), color in zip(curves.items(), colors):
        axes.plot(steps, values, "o-", color=color, linewidth=1.8, markersize=4, label=label)
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
    _legend(axes, loc="best")


def _gap(axes: Any, lines: list[dict]) -> None:
    """Draw two rewards on scales of their own: what is trained on, and what is meant."""
    first, second = reward_functions(lines[-1])[:2]
    axes.set_title(f"mean reward by {first} and by {second}", fontsize=10, loc="left")
    other = axes.twinx()
    for place, name, color in ((axes, first, _BLUE), (other, second, _ORANGE)):
        _line(place, lines, f"rewards/{name}/mean", color, name)
        place.set_ylabel(name, color=color, fontsize=9)
        place.tick_params(axis="y", colors=color, labelsize=9)
    other.spines["top"].set_visible(False)


def _curves(title: str, lines: list[dict]) -> Callable[[Any, list[dict]], None] | None:
    """Returns what draws the metrics of one panel of the table; None if the run logged none."""
    own = [each for each in METRICS if each.panel == title and _logged(each.key)(lines)]
    if not own:
        return None

    def draw(axes: Any, lines: list[dict]) -> None:
        axes.set_title(title, fontsize=10, loc="left")
        for each in own:
            _line(axes, lines, each.key, COLORS[each.color], each.curve or None)
        limit = _LIMITS.get(title)
        if limit is not None:
            axes.set_ylim(*limit(*axes.get_ylim()))
        _legend(axes)

    return draw


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
    colors = dict(zip(names, (_BLUE, _GREY, _GREEN, _ORANGE, _RED), strict=True))
    if columns:
        steps = next(iter(columns.values()))[0]
        stacked = [smooth(values) for _, values in columns.values()]
        shades = [colors[name] for name in columns]
        axes.stackplot(steps, *stacked, labels=list(columns), colors=shades, alpha=0.85)
        _legend(axes, ncols=2, loc="upper right")
        axes.set_ylim(0, 1.35 * max(map(sum, zip(*stacked, strict=True))))


def _logged(*keys: str) -> Callable[[list[dict]], bool]:
    """Returns whether a run has logged one of these metrics."""
    return lambda lines: any(line.get(key) is not None for line in lines for key in keys)


def _sampled_on(lines: list[dict]) -> bool:
    """Returns whether a run sampled more groups than it trained on."""
    last = lines[-1]
    trained = last.get("sampling/groups_trained", 0) * last["step"]
    return last.get("sampling/groups_sampled", 0) > trained > 0


# Panels of the table that a run may have logged and that would show nothing.
_IDLE: dict[str, Callable[[list[dict]], bool]] = {
    "loss": _logged("reward"),
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


def _panels(lines: list[dict]) -> list[Callable[[Any, list[dict]], None]]:
    """Returns what is drawn of a run, in the order of the table of metrics."""
    found: list[Callable[[Any, list[dict]], None]] = []
    if _logged("eval/accuracy")(lines):
        found.append(_accuracy)
    for title in dict.fromkeys(each.panel for each in METRICS if each.panel):
        draw = None if _IDLE.get(title, lambda lines: False)(lines) else _curves(title, lines)
        if draw is not None:
            found.append(draw)
        if title == _REWARD and len(reward_functions(lines[-1])) > 1:
            found.append(_gap)
    return found + ([_times] if _logged("time/step")(lines) else [])
