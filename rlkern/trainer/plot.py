# SPDX-License-Identifier: Apache-2.0
"""curves.png: what happened in a run, on one page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#2f6fb0", "#d9822b", "#3a8f5c", "#b8433f", "#8a8f98"
# Weight of the newest value in a running average of a long curve; short curves take more.
_SMOOTHING = 0.07


def plot_curves(lines: list[dict], path: Path, *, title: str) -> None:
    """Draw the curves of a run's metric lines into a PNG that replaces `path` whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    panels = (_accuracy, _reward, _entropy, _ratios, _gradient, _times)
    for axes, draw in zip(figure.subplots(2, 3).flat, panels, strict=True):
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
    axes.set_title("accuracy on held-out items", fontsize=10, loc="left")
    for mode, color, offset in (("sampled", _BLUE, -8), ("greedy", _ORANGE, 2)):
        steps, values = series(lines, f"eval/accuracy_{mode}")
        if not values:
            continue
        axes.plot(steps, values, "o-", color=color, linewidth=1.8, markersize=4, label=mode)
        for index in sorted({0, len(values) - 1}):
            axes.annotate(
                f"{values[index]:.2f}",
                (steps[index], values[index]),
                textcoords="offset points",
                xytext=(7 if index else -7, offset),
                ha="left" if index else "right",
                fontsize=9,
                color=color,
            )
    axes.set_ylim(0, 1.08)
    axes.margins(x=0.14)
    _legend(axes, loc="upper left")


def _reward(axes: Any, lines: list[dict]) -> None:
    axes.set_title("reward of training rollouts", fontsize=10, loc="left")
    _line(axes, lines, "reward", _BLUE, "reward")
    _line(axes, lines, "frac_reward_zero_std", _GREY, "share of groups with equal rewards")
    _legend(axes)


def _entropy(axes: Any, lines: list[dict]) -> None:
    axes.set_title("entropy and KL to the start, nats", fontsize=10, loc="left")
    _line(axes, lines, "entropy", _GREEN, "entropy")
    if any(line.get("kl") for line in lines):
        _line(axes, lines, "kl", _RED, "kl")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _ratios(axes: Any, lines: list[dict]) -> None:
    if any(line.get("clip_ratio/region_mean") for line in lines):
        axes.set_title("share of clipped tokens", fontsize=10, loc="left")
        _line(axes, lines, "clip_ratio/low_mean", _BLUE, "low")
        _line(axes, lines, "clip_ratio/high_mean", _ORANGE, "high")
    else:
        axes.set_title("completion length, tokens (no token was clipped)", fontsize=10, loc="left")
        _line(axes, lines, "completions/mean_length", _BLUE, "mean")
        _line(axes, lines, "completions/max_length", _GREY, "longest")
    axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 1e-9))
    _legend(axes)


def _gradient(axes: Any, lines: list[dict]) -> None:
    axes.set_title("gradient norm before clipping", fontsize=10, loc="left")
    _line(axes, lines, "grad_norm", _RED)
    axes.set_ylim(bottom=0)


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
