# SPDX-License-Identifier: Apache-2.0
"""Copies of a gymnasium environment whose episodes can be gone on with after a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from rlkern.runs.errors import UserError
from rlkern.runs.settings.names import nearest


class Steps(NamedTuple):
    """What one step of every copy gave.

    reward      (E,) float32
    terminated  (E,) bool, the episode ended: nothing comes after it
    truncated   (E,) bool, it was cut off: its last state has a value
    next        (E, …) the observation that the action led to; where an episode ended its true last
                one, not the first of the next episode
    """

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next: np.ndarray


class Episode(NamedTuple):
    """An episode that is over."""

    total: float
    length: int


def make(name: str, options: Mapping[str, Any]) -> gymnasium.Env:
    """Returns a gymnasium environment; Raises UserError if there is none or a package is
    missing."""
    import rlkern.control.worlds  # noqa: F401  (registers RandomWalk and WindyGridworld)

    try:
        return gymnasium.make(name, disable_env_checker=True, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"env {name} needs a package: {error}") from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        near = nearest(name, gymnasium.registry)
        why = " ".join(str(error).split())
        raise UserError(f"env must be the id of a gymnasium environment, got {name!r}: {why}{near}"
                        ) from error  # fmt: skip
    except TypeError as error:
        raise UserError(f"env_options do not suit {name}: {error}") from error
    except Exception as error:
        # What an environment does not like it says as it likes.
        given = f" with env_options {dict(options)}" if options else ""
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"env {name} cannot be made{given}: {why}") from error


def flat_size(space: spaces.Space) -> int | None:
    """Returns how many states a space has, None if they are not finitely many.

    >>> flat_size(spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)]))
    6
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(np.prod(space.nvec))
    if isinstance(space, spaces.Tuple):
        sizes = [flat_size(each) for each in space.spaces]
        return None if None in sizes else int(np.prod([size or 0 for size in sizes]))
    return None


def flat_index(space: spaces.Space, observation: Any) -> int:
    """Returns the number of a state of a finite space.

    >>> flat_index(spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)]), (2, 1))
    5
    """
    if isinstance(space, spaces.Discrete):
        return int(observation) - int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        digits = (np.asarray(observation) - space.start).ravel()
        return int(np.ravel_multi_index(tuple(digits), tuple(space.nvec.ravel())))
    assert isinstance(space, spaces.Tuple)
    index = 0
    for each, part in zip(space.spaces, observation):
        index = index * (flat_size(each) or 0) + flat_index(each, part)
    return index


def inside(space: spaces.Box, action: np.ndarray) -> np.ndarray:
    """Returns actions (E, …) in the form and the type of a box, none of them beyond its bounds.

    >>> inside(spaces.Box(-3, 3, (1,), np.int64), np.array([[1.6], [-9.0]])).tolist()
    [[2], [-3]]
    """
    held = np.clip(action.reshape(-1, *space.shape), space.low, space.high)
    whole = np.issubdtype(space.dtype, np.integer)
    return (np.rint(held) if whole else held).astype(space.dtype)


class Environments:
    """Copies of an environment, stepped one after the other in this process.

    No copy resets itself (gymnasium's vector environments do, in two ways): `step` returns the
    last observation of an episode that ended, and `observation` then is the first of the next.

    Each episode is reset with a seed made of the run's, the copy's number and the episode's. So the
    number of the episode and the actions taken in it are all that there is to save: `load` takes
    them again. An environment that does not repeat itself then is refused.

    steps     how many steps were taken, those of all copies together
    finished  the episodes that ended since somebody emptied the list
    """

    def __init__(self, name: str, options: Mapping[str, Any], count: int, seed: int) -> None:
        self.name = name
        self.copies = [make(name, options) for _ in range(count)]
        self.observations = self.copies[0].observation_space
        self.actions = self.copies[0].action_space
        self.states = flat_size(self.observations)
        if self.states is None and not isinstance(self.observations, spaces.Box):
            raise UserError(
                f"env {name} shows {self.observations}, which is neither a vector of numbers nor"
                " finitely many states; wrap it in gymnasium.wrappers.FlattenObservation and"
                " register that"
            )
        # Everything here counts the actions of a discrete space from 0.
        self._first = int(self.actions.start) if isinstance(self.actions, spaces.Discrete) else None
        self.steps = 0
        self.finished: list[Episode] = []
        self._seed = seed
        self._episode = [-1] * count
        self._taken: list[list[Any]] = [[] for _ in range(count)]
        self._total = [0.0] * count
        self.observation = self._stacked([self._begin(copy) for copy in range(count)])

    def __len__(self) -> int:
        return len(self.copies)

    @property
    def endless(self) -> bool:
        """Whether nothing cuts an episode off that does not end by itself."""
        spec = self.copies[0].spec
        return spec is None or spec.max_episode_steps is None

    def longest(self) -> int:
        """Returns the steps of the longest of the episodes that are under way."""
        return max(len(each) for each in self._taken)

    def _stacked(self, observations: list[Any]) -> np.ndarray:
        """Returns observations as one array: the numbers of states, or vectors of float32."""
        if self.states is not None:
            return np.array([flat_index(self.observations, each) for each in observations])
        return np.array(observations, np.float32)

    def _begin(self, copy: int) -> Any:
        self._episode[copy] += 1
        self._taken[copy], self._total[copy] = [], 0.0
        numbers = np.random.SeedSequence([self._seed, copy, self._episode[copy]])
        return self.copies[copy].reset(seed=int(numbers.generate_state(1)[0]))[0]

    def step(self, action: np.ndarray) -> Steps:
        """Returns what the actions (E,), counted from 0, or (E, …) led to, and begins the next
        episodes."""
        # CPython's numbers cost an environment less than NumPy's.
        actions = action if self._first is None else (action + self._first).tolist()
        rewards, terminations, truncations, after, now = [], [], [], [], []
        for copy, (env, chosen) in enumerate(zip(self.copies, actions)):
            seen, given, terminated, truncated, _ = env.step(chosen)
            reward = float(given)
            self._taken[copy].append(chosen)
            self._total[copy] += reward
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
            if terminated or truncated:
                # An environment may write its next first observation over its last one.
                after.append(np.copy(seen) if isinstance(seen, np.ndarray) else seen)
                self.finished.append(Episode(self._total[copy], len(self._taken[copy])))
                seen = self._begin(copy)
            else:
                after.append(seen)
            now.append(seen)
        self.steps += len(rewards)
        following = self._stacked(after)
        ended = True in terminations or True in truncations
        self.observation = self._stacked(now) if ended else following
        return Steps(
            np.array(rewards, np.float32), np.array(terminations, bool),
            np.array(truncations, bool), following,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Returns where every copy is."""
        return {
            "steps": self.steps,
            "episode": list(self._episode),
            "taken": [np.array(each) for each in self._taken],
            "observation": np.array(self.observation),
            "finished": [tuple(each) for each in self.finished],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts every copy where it was; Raises UserError if the environment does not repeat
        itself."""
        seen = []
        for copy, env in enumerate(self.copies):
            self._episode[copy] = state["episode"][copy] - 1
            observation = self._begin(copy)
            for action in state["taken"][copy]:
                action = action if self._first is None else int(action)
                observation, given, *_ = env.step(action)
                self._taken[copy].append(action)
                self._total[copy] += float(given)
            seen.append(observation)
        self.observation = self._stacked(seen)
        if not np.array_equal(self.observation, state["observation"]):
            raise UserError(
                f"env {self.name} does not repeat itself after a reset with the same seed, so a run"
                " in it cannot be resumed"
            )
        self.steps = state["steps"]
        self.finished = [Episode(*each) for each in state["finished"]]

    def close(self) -> None:
        """Closes every copy."""
        for env in self.copies:
            env.close()
