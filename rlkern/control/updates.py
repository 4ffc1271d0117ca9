# SPDX-License-Identifier: Apache-2.0
"""What the updates of a table have in common.

An entry is whatever indexes a table: a state, a pair (state, action), or arrays of them, so that
many runs can learn at once as long as no entry occurs twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np


class Transition(NamedTuple):
    """One step: numbers, or arrays of many runs.

    state       the state that the action was taken in
    action      the action
    reward      what it gave
    following   the state that it led to; at the end of an episode its true last one
    terminated  whether nothing comes after that one, so that it is worth 0
    """

    state: Any
    action: Any
    reward: Any
    following: Any
    terminated: Any


def one_step(transition: Transition, value: Any, discount: float) -> Any:
    """Returns r + γ·V(s'), where V(s') is `value`, or 0 if the episode terminated.

    >>> float(one_step(Transition(0, 1, 2.0, 3, False), 4.0, 0.5))
    4.0
    >>> float(one_step(Transition(0, 1, 2.0, 3, True), 4.0, 0.5))
    2.0
    """
    return transition.reward + discount * np.where(transition.terminated, 0.0, value)


def moved(table: np.ndarray, entry: Any, target: Any, learning_rate: Any) -> Any:
    """Returns the error target − table[entry], after moving the entry by α times it.

    >>> table = np.array([1.0, 5.0])
    >>> float(moved(table, 0, 3.0, 0.5)), table.tolist()
    (2.0, [2.0, 5.0])
    """
    error = target - table[entry]
    table[entry] += learning_rate * error
    return error


def averaged(
    table: np.ndarray, count: np.ndarray, entry: Any, target: Any, learning_rate: Any
) -> Any:
    """Returns the error after moving an entry by 1/n of it at its n-th target, which makes it their
    mean, or by α where there is one.

    >>> table, count = np.zeros(1), np.zeros(1)
    >>> for target in (6.0, 3.0, 0.0):
    ...     _ = averaged(table, count, 0, target, None)
    >>> table.tolist(), count.tolist()
    ([3.0], [3.0])
    """
    count[entry] += 1
    rate = 1.0 / count[entry] if learning_rate is None else learning_rate
    return moved(table, entry, target, rate)


def marked(trace: np.ndarray, entry: Any, decay: float) -> None:
    """Lets an accumulating trace fade by γλ and adds 1 where the present step is.

    >>> trace = np.array([1.0, 2.0])
    >>> marked(trace, 1, 0.5)
    >>> trace.tolist()
    [0.5, 2.0]
    """
    trace *= decay
    trace[entry] += 1.0


def returns(reward: Sequence[Any], later: Any, discount: float) -> list[Any]:
    """Returns G_t = r_t + γ·G_{t+1} of an episode's rewards, where `later` is the value of the
    state after the last.

    What rlkern.discounted_return gives, to which a test holds it. An operator of torch costs as
    much as a hundred of these steps, and a table learns from a few of them at a time.

    >>> returns([1.0, 2.0], 4.0, discount=0.5)
    [3.0, 4.0]
    """
    found = []
    for given in reversed(reward):
        later = given + discount * later
        found.append(later)
    return found[::-1]


def complete(window: list[Any], n: int, over: bool) -> Iterator[tuple[Any, ...]]:
    """Yields the steps of a window that begins with the step whose n rewards are there, and drops
    that step; at the end of an episode it does so for all that are left.

    >>> window = ["a", "b"]
    >>> [steps for steps in complete(window, 2, over=False)], window
    ([('a', 'b')], ['b'])
    >>> list(complete(window, 2, over=True)), window
    ([('b',)], [])
    """
    while window and (over or len(window) == n):
        yield tuple(window)
        del window[0]


def first_visits(entries: Sequence[Any]) -> list[int]:
    """Returns where each entry occurs for the first time.

    >>> first_visits([3, 5, 3])
    [0, 1]
    """
    return sorted({entry: i for i, entry in reversed(list(enumerate(entries)))}.values())
