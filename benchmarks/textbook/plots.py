# SPDX-License-Identifier: Apache-2.0
"""The pictures of the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.textbook.walks import ALPHAS
from rlkern.control.environments import make
from rlkern.control.grids import NO_PLACE, grid_of
from rlkern.runs.plot import BLUE, GREY, ORANGE, legend, plain, save_png, smooth


def _figure(width: float, height: float, count: int = 1, **each: Any) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False, **each).flat)


def _shades(name: str, count: int) -> list[Any]:
    """Returns colours of one map, neither too light nor too dark to tell apart."""
    import matplotlib

    return [matplotlib.colormaps[name](x) for x in np.linspace(0.4, 0.95, count)]


def draw_6_2(curves: list[dict], file: Path) -> None:
    """Draw the RMS error over the episodes."""
    figure, (axes,) = _figure(7.5, 4.6)
    for method, shades in (("MC", "Oranges"), ("TD(0)", "Blues")):
        own = [each for each in curves if each["method"] == method]
        for each, color in zip(own, _shades(shades, len(own))):
            axes.plot(each["rms"], color=color, linewidth=1.8,
                      label=f"{method}, α = {each['alpha']:g}")  # fmt: skip
    axes.set(xlabel="episodes", ylabel="RMS error, mean over states and runs", ylim=(0, 0.25))
    axes.set_title("Random walk of 5 states: TD(0) against constant-α Monte Carlo", fontsize=10,
                   loc="left")  # fmt: skip
    plain(axes)
    legend(axes, ncols=2)
    save_png(figure, file)


def _over_alphas(axes: Any, curves: list[dict], name: str, sign: str, title: str) -> None:
    import matplotlib

    colors = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(curves)))
    for each, color in zip(curves, colors):
        errors = [np.nan if x is None else x for x in each["rms"]]
        axes.plot(ALPHAS, errors, color=color, linewidth=1.8, label=f"{sign} = {each[name]:g}")
    axes.set(xlabel="step size α", ylabel="RMS error, mean of 10 episodes", ylim=(0.23, 0.57))
    axes.set_title(title, fontsize=10, loc="left")
    plain(axes)


def draw_7_2(curves: list[dict], file: Path) -> None:
    """Draw the error over the step sizes for each n."""
    figure, (axes,) = _figure(8.5, 4.8)
    _over_alphas(axes, curves, "n", "n", "Random walk of 19 states: n-step TD")
    legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_png(figure, file)


def draw_12_3(curves: list[dict], file: Path) -> None:
    """Draw the error over the step sizes for each λ, off-line and online."""
    figure, places = _figure(13.0, 4.8, 2)
    for axes, method in zip(places, ("off-line λ-return", "TD(λ)")):
        own = [each for each in curves if each["method"] == method]
        _over_alphas(axes, own, "lambda", "λ", f"Random walk of 19 states: {method}")
    legend(places[-1], loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_png(figure, file)


def draw_6_4(curves: list[dict], file: Path) -> None:
    """Draw the rewards during learning, and the greedy paths over the cliff."""
    figure, (axes, over) = _figure(13.5, 4.2, 2, width_ratios=(1, 1.3))
    colors = {"SARSA": BLUE, "Q-learning": ORANGE}
    grid = grid_of(make("CliffWalking-v1", {}).unwrapped)
    assert grid is not None
    rows, columns = grid.letters.shape
    for row, column in np.ndindex(rows, columns):
        letter = grid.letters[row, column]
        color = GREY if letter == "C" else "#f1f2f4"
        over.fill_between((column - 0.48, column + 0.48), row - 0.48, row + 0.48, color=color)
        inside = "white" if letter in NO_PLACE[1:] else "black"
        over.text(column, row, letter, ha="center", va="center", fontsize=12, color=inside)
    for side, each in zip((-0.08, 0.08), curves):
        method, color = each["method"], colors[each["method"]]
        axes.plot(each["rewards"], color=color, alpha=0.25, linewidth=0.8)
        axes.plot(smooth(each["rewards"]), color=color, linewidth=1.8, label=method)
        down, right = np.unravel_index(each["path"], (rows, columns))
        over.plot(right + side, down + side, color=color, linewidth=3,
                  label=f"{method}: {each['path_return']:g}")  # fmt: skip
    axes.set(xlabel="episode", ylabel="sum of rewards, mean over runs", ylim=(-100, -10))
    axes.set_title("While they learn, with ε = 0.1", fontsize=10, loc="left")
    plain(axes)
    legend(axes, loc="lower right")
    over.set(aspect="equal", xlim=(-0.6, columns - 0.4), ylim=(rows - 0.4, -0.6))
    over.set_axis_off()
    over.set_title("Greedy paths of the mean values, with their returns", fontsize=10, loc="left")
    legend(over, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2)
    save_png(figure, file)


def draw_5_1(tables: list[dict], file: Path) -> None:
    """Draw the value surfaces: rows with and without a usable ace, a column for each number of
    episodes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    places = figure.subplots(2, len(tables), squeeze=False, subplot_kw={"projection": "3d"})
    cards, sums = np.meshgrid(np.arange(1, 11), np.arange(12, 22))
    for column, each in enumerate(tables):
        for row, (name, ace) in enumerate((("a usable ace", 1), ("no usable ace", 0))):
            axes = places[row, column]
            axes.plot_surface(
                cards, sums, np.array(each["values"][ace]), cmap="YlGnBu", vmin=-1, vmax=1.2,
                edgecolor="#33415c", linewidth=0.5, rstride=1, cstride=1,
            )  # fmt: skip
            axes.set(zlim=(-1, 1), zticks=(-1, 0, 1), xticks=(1, 4, 7, 10), yticks=(12, 15, 18, 21))
            axes.set_xticklabels(("A", "4", "7", "10"))
            axes.set_xlabel("dealer's card")
            axes.set_ylabel("player's sum")
            axes.view_init(28, -52)
            episodes = f"{each['episodes']:,}".replace(",", " ")
            axes.set_title(f"{name}, {episodes} episodes", fontsize=11)
    figure.suptitle("Blackjack: values of sticking on 20 and 21", fontsize=13, x=0.01, ha="left")
    save_png(figure, file)
