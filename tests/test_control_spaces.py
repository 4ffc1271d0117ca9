# SPDX-License-Identifier: Apache-2.0
"""Kinds of observations and actions, for every algorithm: nothing here names one."""

import dataclasses

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from control_helpers import Countdown, run  # noqa: E402
from gymnasium import spaces  # noqa: E402

from rlkern.control import algorithms  # noqa: E402
from rlkern.control.environments import Environments, flat_index, flat_size, inside  # noqa: E402
from rlkern.control.networks import Encoder  # noqa: E402
from rlkern.control.suits import unsuited  # noqa: E402
from rlkern.runs.errors import UserError  # noqa: E402

SHIFTED = spaces.Discrete(3, start=5)
ACTIONS = {
    "discrete": spaces.Discrete(3, start=-1),
    "uneven": spaces.Box(np.float32([-0.1, 0.3]), np.float32([0.7, 5.1])),
    "a number": spaces.Box(-1.0, 2.0, (), np.float32),
    "a table": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    "whole": spaces.Box(-3, 3, (1,), np.int64),
}


class Strict(Countdown):
    """Shows 5, 6, 7 for its three states, ends in every way in turn, and refuses an action that is
    not in its space or not of its type."""

    def __init__(self, actions: str, shown: str = "discrete") -> None:
        super().__init__()
        self.action_space = ACTIONS[actions]
        self._shown, self._episode = shown, 0
        if shown == "discrete":
            self.observation_space = SHIFTED
        self._place = np.zeros(1, np.float32)  # of which every observation is a view

    def _see(self):
        if self._shown == "discrete":
            return 5 + self._count
        self._place[:] = self._count
        return self._place

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._episode += 1
        return self._see(), {}

    def step(self, action):
        whole = isinstance(self.action_space, spaces.Discrete)
        assert self.action_space.contains(action), action
        assert isinstance(action, int) if whole else action.dtype == self.action_space.dtype
        self._count += 1
        over, how = self._count >= 2, self._episode % 3
        return self._see(), float(np.sum(action)), over and how != 1, over and how != 2, {}


gymnasium.register("Strict-v0", Strict)
CASES = [
    (each, actions)
    for each in algorithms().values()
    for actions in ACTIONS
    if ("discrete" if actions == "discrete" else "box") in each.actions and each.repeats
]


@pytest.mark.parametrize("each, actions", CASES, ids=lambda x: getattr(x, "name", x))
def test_an_environment_gets_actions_of_its_own_space(each, actions, tmp_path):
    extra = {"learning_starts": 20, "buffer_size": 100}
    own = {key: value for key, value in extra.items() if key in each.settings.model_fields}
    summary = run(
        tmp_path, algorithm=each.name, env="Strict-v0", env_options={"actions": actions},
        steps=60, eval_episodes=1, log=[], **{**each.quick, **own},
    )  # fmt: skip
    assert np.isfinite(summary["eval/return"])


def test_actions_of_a_discrete_space_are_counted_from_zero_and_given_as_it_counts():
    environments = Environments("Strict-v0", {"actions": "discrete"}, 1, 0)
    assert [environments.step(np.array([0])).reward[0] for _ in range(2)] == [-1.0, -1.0]
    environments.step(np.array([2]))
    other = Environments("Strict-v0", {"actions": "discrete"}, 1, 0)
    other.load(environments.state())
    assert other._total == [1.0] == environments._total


def test_the_last_observation_survives_an_environment_that_writes_over_it():
    options = {"actions": "discrete", "shown": "vector"}
    environments = Environments("Strict-v0", options, 2, 0)
    environments.step(np.array([0, 0]))
    found = environments.step(np.array([0, 0]))
    assert found.next.tolist() == [[2.0], [2.0]]
    assert environments.observation.tolist() == [[0.0], [0.0]]


def test_an_action_that_is_one_number_is_taken_again_in_its_own_type():
    made = [Environments("Strict-v0", {"actions": "a number"}, 1, 0) for _ in range(2)]
    made[0].step(np.float32([0.1]))
    made[1].load(made[0].state())
    assert made[1]._total == made[0]._total == [float(np.float32(0.1))]


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([3, 2], start=[5, 1]),
        spaces.MultiDiscrete([[3, 2], [1, 2]]),
        spaces.Tuple([spaces.Discrete(3, start=2), spaces.MultiDiscrete([2, 2], start=[1, -1])]),
    ],
)
def test_every_state_of_a_finite_space_has_a_number_of_its_own(space):
    space.seed(0)
    found = {str(each): flat_index(space, each) for each in (space.sample() for _ in range(500))}
    assert sorted(found.values()) == list(range(flat_size(space)))


@pytest.mark.parametrize(
    "space", [spaces.Dict({"a": spaces.Discrete(2)}), spaces.Text(3), spaces.MultiBinary(2)]
)
def test_an_observation_that_is_neither_a_vector_nor_a_state_is_refused(space, monkeypatch):
    monkeypatch.setattr(Strict, "reset", lambda *_, **__: (space.sample(), {}))
    monkeypatch.setitem(globals(), "SHIFTED", space)
    with pytest.raises(UserError, match="neither a vector of numbers nor finitely many states"):
        Environments("Strict-v0", {"actions": "discrete"}, 1, 0)


@pytest.mark.parametrize("high", [np.inf, 3e38])
@pytest.mark.parametrize(
    "each", [a for a in algorithms().values() if "box" in a.actions], ids=lambda each: each.name
)
def test_actions_without_finite_bounds_are_named_as_such(each, high, monkeypatch, tmp_path):
    monkeypatch.setitem(ACTIONS, "a number", spaces.Box(-high, high, (1,), np.float32))
    options = {"actions": "a number"}
    with pytest.raises(UserError, match="actions within finite bounds, and those of Strict-v0 are"):
        run(tmp_path, algorithm=each.name, env="Strict-v0", env_options=options)
    assert not list(tmp_path.iterdir())


def test_no_action_leaves_its_bounds_by_rounding():
    low, high = np.random.default_rng(0).random((2, 1000))
    space = spaces.Box(np.float32(-low), np.float32(9.0 * high))
    high = space.low + 0.5 * np.float32(2.0) * (space.high - space.low)
    assert (high > space.high).any()
    assert space.contains(inside(space, high[None])[0])


def test_many_states_take_the_memory_of_their_rows_alone():
    @dataclasses.dataclass
    class Shown:
        states: int = 1_000_000
        observations: spaces.Space = dataclasses.field(default_factory=lambda: SHIFTED)

    row = Encoder(Shown(), torch.device("cpu"))(np.array([7]))
    assert row.shape == (1, 1_000_000) and row[0, 7] == row.sum() == 1.0


@pytest.mark.parametrize("name", algorithms())
def test_a_recipe_is_of_an_environment_that_there_is(name):
    for env in algorithms()[name].recipes:
        environments = Environments(env, {}, 1, 0)
        assert unsuited(algorithms()[name], environments) is None
        environments.close()
