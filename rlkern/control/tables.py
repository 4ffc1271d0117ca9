# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a table holds: values and greedy actions over the grid, or beside the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlkern.control.dynamic import sure_path
from rlkern.control.environments import flat_size
from rlkern.control.grids import NO_PLACE, Grid, grid_of
from rlkern.runs.plot import BLUE, GREY, ORANGE, legend, plain, save_png

# More states than this are points, the estimate over the true value, not a row.
_ROW = 60
_COLORS = "YlGnBu"
# The sums of Blackjack at which there is something to decide.
_SUMS = range(12, 22)


def draw_action_values(env: Any, q: np.ndarray, file: Path) -> None:
    """Draw the largest value and the greedy action of each state, and the greedy path, for an
    unwrapped grid or Blackjack; nothing for anything else."""
    if _is_blackjack(env):
        _blackjack(env, q.max(-1), file, "values of the best action: H take a card, S stick",
                   np.array(["S", "H"])[q.argmax(-1)])  # fmt: skip
        return
    grid = grid_of(env)
    if grid is None:
        return
    policy = q.argmax(-1)
    figure, (axes,) = _figure(grid, 1)
    path = sure_path(env, policy)
    title = "largest value and greedy action of each state"
    if path is not None:
        steps = f"{len(path.states) - 1} steps"
        end = f"return {path.total:g}" if path.ends else "does not end"
        title += f"; greedy path: {steps}, {end}"
        _line(axes, grid, path.states)
    arrows = np.array(grid.arrows)[policy].reshape(grid.letters.shape)
    _cells(axes, grid, q.max(-1), arrows)
    axes.set_title(title, fontsize=10, loc="left")
    save_png(figure, file)


def draw_state_values(env: Any, v: np.ndarray, truth: np.ndarray | None, file: Path) -> None:
    """Draw estimated values beside the true ones: over an unwrapped grid, as Blackjack's tables, or
    as a row of states."""
    if _is_blackjack(env):
        _blackjack(env, v, file, "estimated values")
        return
    grid = grid_of(env)
    if grid is not None:
        pairs = [("estimated values", v)]
        if truth is not None:
            pairs.append(("true values", truth))
        figure, places = _figure(grid, len(pairs))
        for axes, (title, values) in zip(places, pairs):
            _cells(axes, grid, values)
            axes.set_title(title, fontsize=10, loc="left")
        save_png(figure, file)
        return
    figure, (axes,) = _canvas(7.0, 4.2, 1)
    if len(v) > _ROW and truth is not None:
        axes.plot(truth, truth, color=GREY, linewidth=1, label="equal")
        axes.plot(truth, v, ".", color=BLUE, markersize=4, label="a state")
        axes.set(xlabel="true value", ylabel="estimated value")
    else:
        if truth is not None:
            axes.plot(truth, "o-", color=GREY, linewidth=1, label="true value")
        axes.plot(v, "o-", color=BLUE, label="estimated value")
        axes.set(xlabel="state", ylabel="value")
    plain(axes)
    legend(axes)
    save_png(figure, file)


def _canvas(width: float, height: float, count: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(count, 1, squeeze=False).flat)


def _figure(grid: Grid, count: int) -> tuple[Any, list[Any]]:
    rows, columns = grid.letters.shape
    return _canvas(max(5.5, 0.85 * columns + 0.6), (0.85 * rows + 0.6) * count, count)


def _cells(axes: Any, grid: Grid, values: np.ndarray, arrows: np.ndarray | None = None) -> None:
    """Draw the values as colours and numbers, with an arrow where an action is taken."""
    shape = grid.letters.shape
    table = values.reshape(shape)
    hidden = np.isin(grid.letters, NO_PLACE) | np.isnan(table)
    shown = np.ma.masked_array(table, hidden)
    axes.set_facecolor("#d5d8dc")
    image = axes.imshow(shown, cmap=_COLORS, zorder=0, alpha=0.75)
    low, high = image.get_clim()
    for row, column in np.ndindex(*shape):
        value, letter = table[row, column], grid.letters[row, column]
        dark = not hidden[row, column] and (value - low) > 0.7 * (high - low)
        color = "white" if dark else "#222222"
        if letter in NO_PLACE:
            axes.text(column, row, letter, ha="center", va="center", fontsize=15, color="#444444")
            continue
        axes.text(column - 0.44, row - 0.28, letter, fontsize=8, color=color, zorder=3)
        if hidden[row, column]:
            continue
        number = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
        at = 0.32 if arrows is not None else 0.0
        axes.text(column, row + at, number, ha="center", va="center", fontsize=8, color=color,
                  zorder=3)  # fmt: skip
        if arrows is not None:
            axes.text(column, row - 0.08, arrows[row, column], ha="center", va="center",
                      fontsize=16, color=color, zorder=3)  # fmt: skip
    axes.set_xticks(np.arange(shape[1] + 1) - 0.5, [])
    axes.set_yticks(np.arange(shape[0] + 1) - 0.5, [])
    axes.grid(color="white", linewidth=1.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _line(axes: Any, grid: Grid, states: list[int]) -> None:
    rows, columns = np.unravel_index(states, grid.letters.shape)
    axes.plot(columns, rows, color=ORANGE, linewidth=9, alpha=0.6, zorder=1,
              solid_capstyle="round", solid_joinstyle="round")  # fmt: skip


def _is_blackjack(env: Any) -> bool:
    return type(env).__name__ == "BlackjackEnv"


def blackjack_table(env: Any, values: np.ndarray) -> np.ndarray:
    """Returns values (S,) as (2, 10, 10): without and with a usable ace, by the player's sum from
    12 to 21 and the dealer's card from the ace to 10."""
    sizes = [flat_size(space) or 0 for space in env.observation_space.spaces]
    table = values.reshape(sizes)
    return table[_SUMS.start : _SUMS.stop, 1:].transpose(2, 0, 1)


def _blackjack(
    env: Any, values: np.ndarray, file: Path, title: str, letters: np.ndarray | None = None
) -> None:
    figure, places = _canvas(7.0, 9.0, 2)
    tables = blackjack_table(env, values)
    words = blackjack_table(env, letters) if letters is not None else np.full(tables.shape, "")
    for axes, table, word, ace in zip(places, tables, words, ("no usable ace", "a usable ace")):
        axes.imshow(table, cmap=_COLORS, vmin=-1, vmax=1, aspect="auto", origin="lower",
                    alpha=0.75)  # fmt: skip
        for row, column in np.ndindex(*table.shape):
            value = table[row, column]
            text = f"{word[row, column]} {value:.2f}".strip()
            axes.text(column, row, text, ha="center", va="center", fontsize=8,
                      color="white" if value > 0.4 else "#222222")  # fmt: skip
        axes.set_xticks(range(10), ["A", *map(str, range(2, 11))], fontsize=9)
        axes.set_yticks(range(10), list(map(str, _SUMS)), fontsize=9)
        axes.set_title(f"{title}; {ace}", fontsize=10, loc="left")
        axes.set(xlabel="the dealer's card", ylabel="the player's sum")
        axes.tick_params(length=0)
    save_png(figure, file)
