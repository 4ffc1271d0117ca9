# SPDX-License-Identifier: Apache-2.0
"""Exact values by dynamic programming, where an environment shows its transitions."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np

from rlkern.runs.errors import UserError

# An inverse beyond this has no digit of float64 left to trust.
_SINGULAR = 1e12


def transitions(env: gymnasium.Env) -> Any:
    """Returns the table P of gymnasium's toy_text (by state and action: outcomes as probability,
    next state, reward, terminated), None for an environment without one."""
    return getattr(env.unwrapped, "P", None)


def reached(env: gymnasium.Env, policy: np.ndarray) -> list[int]:
    """Returns the states, not terminal, that a policy (S, A) can come to from the first ones."""
    table = transitions(env)
    queue = [int(s) for s in np.flatnonzero(env.unwrapped.initial_state_distrib)]  # type: ignore[attr-defined]
    found = set(queue)
    while queue:
        state = queue.pop()
        for action in np.flatnonzero(policy[state]):
            for share, following, _, terminated in table[state][int(action)]:
                if share > 0 and not terminated and following not in found:
                    found.add(int(following))
                    queue.append(int(following))
    return sorted(found)


def true_values(env: gymnasium.Env, policy: np.ndarray, discount: float) -> np.ndarray | None:
    """Returns the values (S,) of a policy (S, A), NaN for states that it does not reach; None for
    an environment that does not show its transitions.

        V(s) = Σ_a π(a|s) Σ_s' p(s'|s, a)·(r + γ·V(s')),   a linear system

    Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 4.4. A time limit is no part of it. Raises
    UserError for a policy that need not end without discount, whose values are infinite.

    >>> from rlkern.control.environments import make
    >>> true_values(make("RandomWalk5-v0", {}), np.ones((5, 1)), 1.0).round(3).tolist()
    [0.167, 0.333, 0.5, 0.667, 0.833]
    """
    table = transitions(env)
    if table is None:
        return None
    states = reached(env, policy)
    place = {state: i for i, state in enumerate(states)}
    matrix, reward = np.eye(len(states)), np.zeros(len(states))
    for row, state in enumerate(states):
        for action in np.flatnonzero(policy[state]):
            for share, following, given, terminated in table[state][int(action)]:
                weight = float(policy[state, action]) * share
                reward[row] += weight * float(given)
                if not terminated and share > 0:
                    matrix[row, place[int(following)]] -= weight * discount
    if np.linalg.cond(matrix) > _SINGULAR:
        raise UserError(
            "discount must be below 1 for a policy that may never end an episode, got"
            f" {discount:g}: its values are not finite"
        )
    values = np.full(len(policy), np.nan)
    values[states] = np.linalg.solve(matrix, reward)
    return values


class Path(NamedTuple):
    """What a policy does where nothing is left to chance.

    states  from the first to the last, or to the first that is seen again
    total   the rewards
    ends    whether the episode is over there, not going round and round
    """

    states: list[int]
    total: float
    ends: bool


def sure_path(env: gymnasium.Env, policy: np.ndarray) -> Path | None:
    """Returns the path of a policy of actions (S,), None where chance has a part in it.

    >>> from rlkern.control.environments import make
    >>> sure_path(make("WindyGridworld-v0", {}), np.zeros(70, int))     # up, and up again
    Path(states=[30, 20, 10, 0, 0], total=-4.0, ends=False)
    """
    table = transitions(env)
    starts = np.flatnonzero(getattr(env.unwrapped, "initial_state_distrib", ()))
    if table is None or len(starts) != 1:
        return None
    path, total, ends = [int(starts[0])], 0.0, False
    while not ends and len(path) == len(set(path)):
        outcomes = [each for each in table[path[-1]][int(policy[path[-1]])] if each[0] > 0]
        if len(outcomes) != 1:
            return None
        _, following, reward, ends = outcomes[0]
        path.append(int(following))
        total += float(reward)
    return Path(path, total, bool(ends))
