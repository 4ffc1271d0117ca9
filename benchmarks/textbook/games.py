# SPDX-License-Identifier: Apache-2.0
"""Control on the cliff, figure 6.4, and prediction in Blackjack, figure 5.1."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rlkern.control.algorithms import mc_first_visit, q_learning, sarsa
from rlkern.control.dynamic import sure_path
from rlkern.control.environments import flat_index, flat_size, make
from rlkern.control.given_policies import stick_on_20
from rlkern.control.tables import blackjack_table
from rlkern.control.tabular import epsilon_greedy
from rlkern.control.updates import Transition

EPSILON, ALPHA = 0.1, 0.5


class Cliff(NamedTuple):
    """R copies of CliffWalking in one table: copy r holds the states from 48·r on."""

    following: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    start: np.ndarray


def cliff(runs: int) -> Cliff:
    """Returns the copies."""
    env: Any = make("CliffWalking-v1", {}).unwrapped
    table = [[env.P[state][action][0] for action in range(4)] for state in range(48)]
    following = np.array([[int(each[1]) for each in row] for row in table])
    reward = np.array([[float(each[2]) for each in row] for row in table])
    terminated = np.array([[bool(each[3]) for each in row] for row in table])
    shift = 48 * np.arange(runs)
    return Cliff(
        (following[None] + shift[:, None, None]).reshape(-1, 4),
        np.tile(reward, (runs, 1)),
        np.tile(terminated, (runs, 1)),
        shift + env.start_state_index,
    )


def chosen(rng: np.random.Generator, q: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Returns ε-greedy actions (R,)."""
    below = epsilon_greedy(q[state], EPSILON).cumsum(-1)[:, :-1]
    return (rng.random((len(state), 1)) >= below).sum(-1)


def learn_cliff(on_policy: bool, runs: int, episodes: int, seed: int) -> tuple[Any, np.ndarray]:
    """Returns the tables (R, 48, 4) and the sums of rewards (R, episodes); a run that has had its
    episodes learns no more."""
    rng, world = np.random.default_rng(seed), cliff(runs)
    q = np.zeros((48 * runs, 4))
    total, episode = np.zeros((runs, episodes + 1)), np.zeros(runs, int)
    state, action, every = world.start, chosen(rng, q, world.start), np.arange(runs)
    while (episode < episodes).any():
        rate = np.where(episode < episodes, ALPHA, 0.0)
        reward, following = world.reward[state, action], world.following[state, action]
        over = world.terminated[state, action]
        step = Transition(state, action, reward, following, over)
        if on_policy:
            later = chosen(rng, q, following)
            sarsa.updated(q, step, later, learning_rate=rate, discount=1.0)
        else:
            q_learning.updated(q, step, learning_rate=rate, discount=1.0)
        total[every, episode] += reward
        episode = np.minimum(episode + over, episodes)
        state = np.where(over, world.start, following)
        drawn = chosen(rng, q, state)
        action = np.where(over, drawn, later) if on_policy else drawn
    return q.reshape(runs, 48, 4), total[:, :-1]


def figure_6_4(runs: int, seed: int = 0, episodes: int = 500) -> list[dict]:
    """Returns for each method the sum of rewards by episode, mean over the runs; the returns of the
    greedy paths (None for one that goes round and round); and the path of the mean table."""
    env = make("CliffWalking-v1", {})
    found = []
    for method, on_policy in (("SARSA", True), ("Q-learning", False)):
        q, total = learn_cliff(on_policy, runs, episodes, seed)
        paths = [sure_path(env, each.argmax(-1)) for each in q]
        mean = sure_path(env, q.mean(0).argmax(-1))
        assert mean is not None
        ends = [path.total if path is not None and path.ends else None for path in paths]
        found.append(
            {"method": method, "rewards": total.mean(0).tolist(), "greedy_returns": ends,
             "path": mean.states, "path_return": mean.total if mean.ends else None}
        )  # fmt: skip
    return found


MARKS = (10_000, 500_000)


def figure_5_1(marks: tuple[int, ...] = MARKS, seed: int = 0) -> list[dict]:
    """Returns the values (2, 10, 10) of stick-on-20, without and with a usable ace, after each
    number of episodes."""
    env: Any = make("Blackjack-v1", {}).unwrapped
    cards = env.observation_space
    hit = stick_on_20(cards)[:, 1].astype(int)
    v = np.zeros(flat_size(cards) or 0)
    count, found = np.zeros_like(v), []
    env.reset(seed=seed)
    for episode in range(1, marks[-1] + 1):
        seen, over, states, reward = env.reset()[0], False, [], []
        while not over:
            states.append(flat_index(cards, seen))
            seen, given, over, _, _ = env.step(int(hit[states[-1]]))
            reward.append(given)
        mc_first_visit.updated(v, count, states, reward, 0.0, learning_rate=None, discount=1.0)
        if episode in marks:
            found.append({"episodes": episode, "values": blackjack_table(env, v).tolist()})
    return found


def roughness(values: Any) -> list[float]:
    """Returns, for the tables without and with a usable ace, the mean size of the second
    differences along the dealer's cards 2 to 10, where the true values change little.

    >>> roughness([[[9.0, 0.0, 1.0, 2.0]], [[9.0, 0.0, 1.0, 0.0]]])
    [0.0, 2.0]
    """
    second = np.diff(np.asarray(values)[:, :, 1:], 2, axis=-1)
    return [float(each) for each in np.abs(second).mean((1, 2))]
