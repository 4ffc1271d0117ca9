# SPDX-License-Identifier: Apache-2.0
"""The figures of the pages: means over the seeds, and bands from the lowest to the highest."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from rlkern.compare import words
from rlkern.compare.measure import ACCURACY, DEGENERATE, Run, band, target
from rlkern.compare.sections import CLIPPED, pairs_of_rewards
from rlkern.compare.words import Declared

# Colours of Okabe and Ito, told apart by readers of any colour vision and in grey.
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
_GREY = "#B0B0B0"
_LEVELS = (_BLUE, _ORANGE, _GREEN, _RED, _PURPLE)
_COLUMNS = 6


def draw(runs: dict[str, list[Run]], declared: dict[str, Declared], out: Path) -> list[Path]:
    """Returns the figures that were drawn: one of all, one for each, and those of the sections."""
    ran = {name: runs[name] for name in declared if name in runs}
    drawn = []
    for name, own in ran.items():
        drawn.append(_one(own, declared[name], out / "algorithms" / f"{name}.png"))
    if ran:
        drawn.append(_all(ran, declared, out / "algorithms.png"))
    clipped = {name: own for name, own in ran.items() if words.clips(declared[name])}
    if clipped:
        drawn.append(_clip(clipped, declared, out / "algorithms-clip.png"))
    gaps = {name: own for name, own in runs.items() if pairs_of_rewards(own[0])}
    if gaps:
        drawn.append(_gaps(gaps, out / "algorithms-rewards.png"))
    return drawn


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    from PIL import Image

    image = io.BytesIO()
    figure.savefig(image, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A figure has few colours; a palette of them is a third of the bytes.
    Image.open(image).convert("RGB").quantize(64).save(path, format="png", optimize=True)
    return path


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10 if len(title) < 22 or " " in title else 8, loc="left")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _banded(
    axes: Any, runs: list[Run], key: str, color: str, label: str | None = None, dash: str = "-"
) -> None:
    """Draw the mean of a key with its band."""
    steps, mean, low, high = band(runs, key)
    if steps:
        axes.fill_between(steps, low, high, color=color, alpha=0.22, linewidth=0)
        axes.plot(steps, mean, dash, color=color, linewidth=1.7, label=label)


def _all(ran: dict[str, list[Run]], declared: dict[str, Declared], path: Path) -> Path:
    """Draw a panel for each algorithm, with the means of its kind behind it in grey."""
    order = sorted(ran, key=lambda name: (_KINDS.index(declared[name].learns_from), name))
    rows = math.ceil(len(order) / _COLUMNS)
    figure = _figure(2.15 * min(_COLUMNS, len(order)), 1.65 * rows + 0.6)
    grid = figure.subplots(rows, min(_COLUMNS, len(order)), sharey=True, squeeze=False)
    figure.suptitle(
        "held-out accuracy by step: mean and range of the seeds; the others of its kind in grey",
        fontsize=11, x=0.01, ha="left",
    )  # fmt: skip
    for axes, name in zip(grid.flat, order):
        kind = declared[name].learns_from
        for other in order:
            if other != name and declared[other].learns_from == kind:
                steps, mean, _, _ = band(ran[other], ACCURACY)
                axes.plot(steps, mean, color=_GREY, linewidth=0.6, alpha=0.7)
        axes.axhline(target(kind), color=_RED, linewidth=0.8, linestyle=":")
        _banded(axes, ran[name], ACCURACY, _BLUE)
        _plain(axes, name)
        axes.set_ylim(0, 1)
    for axes in list(grid.flat)[len(order) :]:
        axes.set_axis_off()
    return _save(figure, path)


_KINDS = ("rollouts", "answers", "pairs", "judged")


def _one(runs: list[Run], declared: Declared, path: Path) -> Path:
    """Draw the accuracy of one algorithm beside what its runs say about themselves."""
    figure = _figure(9.5, 2.9)
    left, right = figure.subplots(1, 2)
    _banded(left, runs, ACCURACY, _BLUE)
    left.axhline(target(declared.learns_from), color=_RED, linewidth=0.8, linestyle=":")
    left.set_ylim(0, 1)
    _plain(left, f"held-out accuracy, {len(runs)} seeds")
    for key, color, label, dash in (
        ("reward", _GREEN, "reward", "-"),
        ("rewards/accuracies", _GREEN, "pairs of the batch in order", "-"),
        (DEGENERATE, _PURPLE, "groups of equal rewards", "--"),
        (CLIPPED, _ORANGE, "tokens clipped", "-."),
    ):
        _banded(right, runs, key, color, label, dash)
    _plain(right, "while training")
    right.set_ylim(0, 1)
    if right.get_legend_handles_labels()[1]:
        right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=9)
    return _save(figure, path)


def _clip(ran: dict[str, list[Run]], declared: dict[str, Declared], path: Path) -> Path:
    """Draw the clip fractions on a scale of powers of ten, a colour for each level of the ratio."""
    members: dict[str, list[str]] = {}
    for name, own in ran.items():
        if any(band(own, CLIPPED)[1]):
            members.setdefault(words.ratio(declared[name]), []).append(name)
    figure = _figure(9.5, 4.2)
    axes = figure.subplots()
    for (level, names), color in zip(sorted(members.items()), _LEVELS):
        said = ", ".join(names) if len(names) < 4 else f"{len(names)} algorithms"
        axes.plot([], [], color=color, label=f"ratio of the {level}: {said}")
        for name in names:
            steps, mean, low, high = band(ran[name], CLIPPED)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(steps, mean, color=color, linewidth=1.4)
    _plain(axes, "share of tokens clipped, mean and range of the seeds")
    axes.set_xlabel("step", fontsize=9)
    if members:
        axes.set_yscale("log")
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return _save(figure, path)


def _gaps(runs: dict[str, list[Run]], path: Path) -> Path:
    """Draw all rewards of each run that kept more than one."""
    figure = _figure(4.8 * len(runs), 3.2)
    for axes, (name, own) in zip(figure.subplots(1, len(runs), squeeze=False).flat, runs.items()):
        dashes = ("-", "--", "-.", ":")
        for key, color, dash in zip(pairs_of_rewards(own[0]), (_BLUE, _RED, _GREEN), dashes):
            _banded(axes, own, key, color, key.removeprefix("rewards/").removesuffix("/mean"), dash)
        _plain(axes, name)
        axes.set_xlabel("step", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    return _save(figure, path)
