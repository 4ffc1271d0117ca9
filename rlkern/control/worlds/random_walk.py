# SPDX-License-Identifier: Apache-2.0
"""The random walk: a row of states, each step goes left or right by chance, both ends are terminal.

Source: Sutton & Barto, Reinforcement Learning, 2nd ed., example 6.2 (5 states, reward 0 on the left
and 1 on the right) and 7.1 (19 states, −1 and 1).
"""

from __future__ import annotations

from rlkern.control.worlds.table_world import Table, TableWorld


def transitions(states: int, left_reward: float) -> Table:
    """Returns the table of a walk; beyond an end the episode is over and the last state is shown.

    >>> transitions(1, -1.0)[0][0]
    [(0.5, 0, -1.0, True), (0.5, 0, 1.0, True)]
    """
    last = states - 1
    return {
        state: {
            0: [
                (0.5, max(state - 1, 0), left_reward if state == 0 else 0.0, state == 0),
                (0.5, min(state + 1, last), 1.0 if state == last else 0.0, state == last),
            ]
        }
        for state in range(states)
    }


class RandomWalk(TableWorld):
    """States 0 to n − 1, begun in the middle; the only action lets chance decide.

    With reward l on the left end and 1 on the right, state i is worth l + (1 − l)·(i + 1)/(n + 1)
    without discount.
    """

    def __init__(self, states: int = 5, left_reward: float = 0.0) -> None:
        super().__init__(transitions(states, left_reward), states // 2)
