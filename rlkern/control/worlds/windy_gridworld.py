# SPDX-License-Identifier: Apache-2.0
"""The windy gridworld: a wind blows upwards in the middle columns; each step costs 1.

Source: Sutton & Barto, Reinforcement Learning, 2nd ed., example 6.5. From S to G the wind makes 15
moves the fewest.
"""

from __future__ import annotations

from rlkern.control.worlds.table_world import Table, TableWorld

ROWS, COLUMNS = 7, 10
WIND = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)
START, GOAL = (3, 0), (3, 7)
# Up, right, down, left, as in gymnasium's CliffWalking.
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


def transitions() -> Table:
    """Returns the table: the wind of the column that is left pushes the move upwards.

    >>> transitions()[3 * COLUMNS + 3][1]               # from (3, 3) to the right: to (2, 4)
    [(1.0, 24, -1.0, False)]
    >>> transitions()[4 * COLUMNS + 8][3]               # from (4, 8) to the left: the goal
    [(1.0, 37, -1.0, True)]
    """
    table: Table = {}
    for row in range(ROWS):
        for column in range(COLUMNS):
            outcomes = {}
            for action, (down, right) in enumerate(MOVES):
                lower = min(max(row + down - WIND[column], 0), ROWS - 1)
                beside = min(max(column + right, 0), COLUMNS - 1)
                place = lower * COLUMNS + beside
                outcomes[action] = [(1.0, place, -1.0, (lower, beside) == GOAL)]
            table[row * COLUMNS + column] = outcomes
    return table


class WindyGridworld(TableWorld):
    """A cell (row, column) has the number row·10 + column.

    desc   letters of the cells: S start, G goal, and the wind's strength where there is one
    moves  (rows down, columns to the right) of the actions without the wind
    """

    moves = MOVES

    def __init__(self) -> None:
        super().__init__(transitions(), START[0] * COLUMNS + START[1])
        letters = ["".join(str(wind or " ") for wind in WIND)] * ROWS
        self.desc = [list(row) for row in letters]
        self.desc[START[0]][START[1]], self.desc[GOAL[0]][GOAL[1]] = "S", "G"
