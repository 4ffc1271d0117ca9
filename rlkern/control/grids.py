# SPDX-License-Identifier: Apache-2.0
"""What a gridworld looks like from above."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# What ends an episode, or is no place to be: no action is taken there.
NO_PLACE = ("G", "H", "C")
# gymnasium gives the numbers of the actions as names only.
_MOVES = {
    "CliffWalkingEnv": ((-1, 0), (0, 1), (1, 0), (0, -1)),
    "FrozenLakeEnv": ((0, -1), (1, 0), (0, 1), (-1, 0)),
}
_ARROWS = {(-1, 0): "↑", (0, 1): "→", (1, 0): "↓", (0, -1): "←"}


class Grid(NamedTuple):
    """Cells row by row; the number of a cell is that of its state.

    letters  (rows, columns) of str: S start, G goal, H hole, C cliff, digits for the wind
    arrows   (A,) what an action looks like
    """

    letters: np.ndarray
    arrows: tuple[str, ...]


def grid_of(env: Any) -> Grid | None:
    """Returns the grid of an unwrapped environment, None for one that is no grid.

    >>> from rlkern.control.environments import make
    >>> grid = grid_of(make("CliffWalking-v1", {}).unwrapped)
    >>> "".join(grid.letters[3]), grid.arrows
    ('SCCCCCCCCCCG', ('↑', '→', '↓', '←'))
    """
    moves = getattr(env, "moves", None) or _MOVES.get(type(env).__name__)
    if moves is None:
        return None
    letters = _letters(env) if hasattr(env, "desc") else _cliff(env)
    return Grid(letters, tuple(_ARROWS[tuple(move)] for move in moves))


def _letters(env: Any) -> np.ndarray:
    """Returns the letters of a map; F is frozen ground, that is nothing."""
    found = np.array(env.desc).astype(str)
    return np.where(found == "F", " ", found)


def _cliff(env: Any) -> np.ndarray:
    """Returns the letters of CliffWalking, which keeps no map."""
    letters = np.where(env._cliff, "C", " ")
    letters.flat[env.start_state_index] = "S"
    letters[-1, -1] = "G"
    return letters
