# SPDX-License-Identifier: Apache-2.0
"""Prediction on the random walks: figures 6.2, 7.2, 12.3 and 12.6.

Many runs and step sizes learn at once from the same walks, each with its own table: an entry of the
updates of rlkern.control.algorithms is then an array. Tables are (states + 1, A, R) for A step
sizes and R runs; the last row is where a walk that is over stays, worth 0, so that the update of
such a step moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from rlkern import lambda_return
from rlkern.control.algorithms import mc_every_visit, td_lambda, td_n, td_zero
from rlkern.control.updates import Transition, moved
from rlkern.control.worlds.random_walk import transitions


class Walks(NamedTuple):
    """An episode of R runs, each (T, R) for the longest of them: states and rewards."""

    state: np.ndarray
    reward: np.ndarray
    following: np.ndarray


def true_values(states: int, left_reward: float) -> np.ndarray:
    """Returns the values of the states.

    >>> true_values(3, -1.0).tolist()
    [-0.5, 0.0, 0.5]
    """
    return left_reward + (1.0 - left_reward) * np.arange(1, states + 1) / (states + 1)


def walks(rng: np.random.Generator, states: int, left_reward: float, runs: int) -> Walks:
    """Returns the next episode of every run."""
    table = [row[0] for row in transitions(states, left_reward).values()]
    after = np.array([[states if over else s for _, s, _, over in row] for row in table])
    given = np.array([[reward for _, _, reward, _ in row] for row in table])
    after, given = np.vstack([after, [states] * 2]), np.vstack([given, [0.0] * 2])
    place, rows = np.full(runs, states // 2), []
    while (place < states).any():
        side = rng.integers(2, size=runs)
        rows.append((place, given[place, side], after[place, side]))
        place = after[place, side]
    return Walks(*(np.stack(column) for column in zip(*rows)))


class Tables:
    """Values of A step sizes and R runs, and how to find the entries of a step."""

    def __init__(self, states: int, alphas: Sequence[float], runs: int, initial: float) -> None:
        self.v = np.full((states + 1, len(alphas), runs), initial)
        self.v[-1] = 0.0
        self.alpha = np.array(alphas)[:, None]
        self._rest = np.arange(len(alphas))[:, None], np.arange(runs)[None, :]

    def entry(self, state: np.ndarray) -> tuple[Any, ...]:
        """Returns the index of the states (R,) in every table: (A, R)."""
        return (state[None, :], *self._rest)

    def step(self, walk: Walks, t: int) -> Transition:
        """Returns step t; what follows the last one is the row that is worth 0."""
        return Transition(
            self.entry(walk.state[t]), 0, walk.reward[t], self.entry(walk.following[t]), False
        )

    def rms(self, truth: np.ndarray) -> np.ndarray:
        """Returns (A,) the distance to the true values, mean over the runs."""
        distance = self.v[:-1] - truth[:, None, None]
        return np.sqrt((distance**2).mean(0)).mean(-1)


def learn_td(tables: Tables, walk: Walks) -> None:
    """TD(0), online."""
    for t in range(len(walk.state)):
        td_zero.updated(tables.v, tables.step(walk, t), learning_rate=tables.alpha, discount=1.0)


def learn_mc(tables: Tables, walk: Walks) -> None:
    """Constant-α Monte Carlo, every visit."""
    entries = [tables.entry(state) for state in walk.state]
    count = np.zeros_like(tables.v)
    mc_every_visit.updated(
        tables.v, count, entries, list(walk.reward), 0.0, learning_rate=tables.alpha, discount=1.0
    )


def learn_n(tables: Tables, walk: Walks, n: int) -> None:
    """TD(n): a state is updated when n rewards are there, so in the order of the states."""
    last = len(walk.state)
    for t in range(last):
        end = min(t + n, last)
        later = tables.v[tables.entry(walk.following[end - 1])]
        td_n.updated(
            tables.v, tables.entry(walk.state[t]), walk.reward[t:end], later,
            learning_rate=tables.alpha, discount=1.0,
        )  # fmt: skip


def learn_lambda(tables: Tables, walk: Walks, decay: float) -> None:
    """TD(λ), online, accumulating traces."""
    trace = np.zeros_like(tables.v)
    for t in range(len(walk.state)):
        td_lambda.updated(
            tables.v, trace, tables.step(walk, t),
            learning_rate=tables.alpha, discount=1.0, trace_decay=decay,
        )  # fmt: skip


def learn_offline(tables: Tables, walk: Walks, decay: float) -> None:
    """The off-line λ-return algorithm: targets of the values before the episode, then one update
    after the other (section 12.1)."""
    entries = [tables.entry(state) for state in walk.state]
    value = torch.from_numpy(np.stack([tables.v[entry] for entry in entries], -1))  # (A, R, T)
    reward = torch.from_numpy(np.ascontiguousarray(walk.reward.T)).expand_as(value)
    on_way = torch.from_numpy(np.ascontiguousarray(walk.state.T) < len(tables.v) - 1)
    mask = on_way.expand_as(value)
    target = lambda_return(
        reward.flatten(0, 1), value.flatten(0, 1), mask.flatten(0, 1), gae_lambda=decay
    )
    for t, entry in enumerate(entries):
        moved(tables.v, entry, target.reshape(value.shape)[..., t].numpy(), tables.alpha)


def figure_6_2(runs: int, seed: int = 0, episodes: int = 100) -> list[dict]:
    """Returns a curve for each method and step size: the RMS error after each episode."""
    truth = true_values(5, 0.0)
    methods = {"TD(0)": ((0.05, 0.1, 0.15), learn_td), "MC": ((0.01, 0.02, 0.03, 0.04), learn_mc)}
    found = []
    for method, (alphas, learn) in methods.items():
        rng = np.random.default_rng(seed)
        tables = Tables(5, alphas, runs, 0.5)
        curve = [tables.rms(truth)]
        for _ in range(episodes):
            learn(tables, walks(rng, 5, 0.0, runs))
            curve.append(tables.rms(truth))
        for alpha, errors in zip(alphas, np.transpose(curve)):
            found.append({"method": method, "alpha": alpha, "rms": errors.tolist()})
    return found


ALPHAS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STEPS = tuple(2**k for k in range(10))
DECAYS = (0.0, 0.4, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)


def over_alphas(learn: Any, setting: float, runs: int, seed: int) -> list[float | None]:
    """Returns the RMS error of each step size on 19 states, mean over the first 10 episodes and the
    runs; None where the values have grown without bound."""
    truth, rng = true_values(19, -1.0), np.random.default_rng(seed)
    tables = Tables(19, ALPHAS, runs, 0.0)
    total = np.zeros(len(ALPHAS))
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(10):
            learn(tables, walks(rng, 19, -1.0, runs), setting)
            total += tables.rms(truth) / 10
    return [float(each) if np.isfinite(each) and each < 10 else None for each in total]


def _curves(name: str, settings: Sequence[float], learn: Any, runs: int, seed: int) -> Iterator:
    for setting in settings:
        errors = over_alphas(learn, setting, runs, seed)
        yield {name: setting, "alpha": list(ALPHAS), "rms": errors}


def figure_7_2(runs: int, seed: int = 0) -> list[dict]:
    """Returns a curve over step sizes for each n of n-step TD."""
    return list(_curves("n", STEPS, learn_n, runs, seed))


def figure_12_3(runs: int, seed: int = 0) -> list[dict]:
    """Returns a curve over step sizes for each λ of the off-line λ-return algorithm, and of TD(λ)
    with accumulating traces (figure 12.6)."""
    found = []
    for method, learn in (("off-line λ-return", learn_offline), ("TD(λ)", learn_lambda)):
        curves = _curves("lambda", DECAYS, learn, runs, seed)
        found += [{"method": method, **curve} for curve in curves]
    return found


def best(curve: dict) -> float:
    """Returns the smallest error of a curve."""
    return min(each for each in curve["rms"] if each is not None)
