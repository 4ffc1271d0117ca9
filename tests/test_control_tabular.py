# SPDX-License-Identifier: Apache-2.0
"""The algorithms that keep a table: their values, ends of episodes, and what ties them."""

import gymnasium
import numpy as np
import pytest
import torch
from control_helpers import run

import rlkern
from rlkern import cli
from rlkern.control import algorithms, of
from rlkern.control.algorithms import expected_sarsa, q_learning, td_lambda
from rlkern.control.declaration import TABLE
from rlkern.control.dynamic import sure_path, true_values
from rlkern.control.environments import Environments, make
from rlkern.control.settings import declared
from rlkern.control.updates import Transition, returns
from rlkern.control.worlds.table_world import TableWorld

TABULAR = {each.name: each for each in algorithms().values() if each.observations == TABLE}
PREDICTION = [each.name for each in TABULAR.values() if each.learns == "prediction"]
CONTROL = [name for name in TABULAR if name not in PREDICTION]
# Reward 1 and γ = 0.5: worth 2 if it goes on for ever, 1 if it ends at once.
for name, over, most in (("Endless-v0", False, 3), ("Once-v0", True, None)):
    options = {"transitions": {0: {0: [(1.0, 0, 1.0, over)]}}, "start": 0}
    gymnasium.register(name, TableWorld, kwargs=options, max_episode_steps=most)


def trained(name: str, env: str, **more):
    """Returns a learner after its steps, and the returns of the episodes that it had."""
    settings = of(algorithm=name, env=env, **more)
    environments = Environments(env, settings.env_options, 1, settings.seed)
    declared(settings).learner.check(settings, environments)
    learner = declared(settings).learner(settings, environments)
    while environments.steps < settings.steps:
        learner.iterate()
    return learner, [each.total for each in environments.finished]


def table(learner) -> np.ndarray:
    """Returns the values of the states, or those of the actions."""
    return learner.v if hasattr(learner, "v") else learner.values(slice(None))


def episode(seed: int, length: int = 40) -> tuple[list[int], list[float]]:
    """Returns states, one more than there are rewards, and rewards."""
    rng = np.random.default_rng(seed)
    return rng.integers(6, size=length + 1).tolist(), rng.normal(size=length).tolist()


@pytest.mark.parametrize("name", TABULAR)
def test_an_episode_that_is_cut_off_is_worth_what_would_have_followed(name):
    learner, _ = trained(name, "Endless-v0", steps=1500, discount=0.5)
    assert table(learner).item() == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", TABULAR)
def test_nothing_comes_after_an_episode_that_terminated(name):
    learner, _ = trained(name, "Once-v0", steps=1500, discount=0.5, initial_value=9.0)
    assert table(learner).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", PREDICTION)
def test_the_values_of_the_walk_are_found(name):
    learner, _ = trained(name, "RandomWalk5-v0")
    assert learner.measured()["eval/rmse"] < 0.05


@pytest.mark.parametrize("name", CONTROL)
def test_control_improves_on_its_environment(name):
    env = next(iter(TABULAR[name].recipes))
    _, totals = trained(name, env, steps=5000)
    tenth = len(totals) // 10
    assert np.mean(totals[-tenth:]) > np.mean(totals[:tenth]) + abs(np.mean(totals[:tenth])) / 4


@pytest.mark.parametrize(
    "name, own, other, theirs",
    [
        ("td_n", {"n": 1}, "td_zero", {}),
        ("td_lambda", {"trace_decay": 0.0}, "td_zero", {}),
        ("td_n", {"n": 10**6}, "mc_every_visit", {}),
        ("n_step_sarsa", {"n": 1}, "sarsa", {}),
        ("sarsa_lambda", {"trace_decay": 0.0}, "sarsa", {}),
    ],
)
def test_a_method_at_the_end_of_its_range_is_another(name, own, other, theirs):
    env = "RandomWalk5-v0" if name in PREDICTION else "WindyGridworld-v0"
    shared = {"steps": 2000, "learning_rate": 0.1}
    if name not in PREDICTION:
        shared["learning_rate_end"] = 0.05
    mine, _ = trained(name, env, **shared, **own)
    its, _ = trained(other, env, **shared, **theirs)
    assert np.abs(table(mine)).max() > 0
    np.testing.assert_allclose(table(mine), table(its), rtol=1e-12)


FALLING = [n for n, each in TABULAR.items() if "learning_rate_end" in each.settings.model_fields]


@pytest.mark.parametrize("name", FALLING)
def test_a_step_size_that_has_fallen_to_zero_moves_nothing(name):
    learner, _ = trained(name, "WindyGridworld-v0", steps=500, learning_rate_end=0.0)
    before = table(learner).copy()
    for _ in range(50):
        learner.iterate()
    assert np.abs(before).max() > 0 and np.array_equal(table(learner), before)
    still = trained(name, "WindyGridworld-v0", steps=500, learning_rate_end=0.5)[0]
    assert not np.array_equal(table(still), before)


def test_expected_sarsa_of_the_greedy_policy_is_q_learning():
    rng = np.random.default_rng(0)
    mine = rng.normal(size=(6, 3))
    its = mine.copy()
    rates = {"learning_rate": 0.3, "discount": 0.9}
    for _ in range(50):
        state, following = rng.integers(6, size=2)
        step = Transition(state, rng.integers(3), rng.normal(), following, rng.random() < 0.2)
        expected_sarsa.updated(mine, step, 0.0, **rates)
        q_learning.updated(its, step, **rates)
    np.testing.assert_allclose(mine, its, rtol=1e-12)


def moves_of_traces(v, states, rewards, terminated, trace_decay, discount):
    """Returns the sum of TD(λ)'s moves over an episode during which the values stay what they
    are."""
    trace, total = np.zeros_like(v), np.zeros_like(v)
    for t, reward in enumerate(rewards):
        last = t == len(rewards) - 1
        step = Transition(states[t], 0, reward, states[t + 1], terminated and last)
        moving = v.copy()
        td_lambda.updated(moving, trace, step, learning_rate=0.1, discount=discount,
                          trace_decay=trace_decay)  # fmt: skip
        total += moving - v
    return total


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_the_moves_of_td_lambda_within_an_episode_are_those_of_the_lambda_return(decay, terminated):
    states, rewards = episode(seed=1)
    v = np.random.default_rng(2).normal(size=6)
    row = [torch.tensor(np.array([each])) for each in (rewards, v[states[:-1]])]
    after = torch.tensor([0.0 if terminated else v[states[-1]]], dtype=torch.float64)
    target = rlkern.lambda_return(
        *row, row[0] == row[0], discount=0.9, gae_lambda=decay, bootstrap=after
    )
    expected = np.zeros_like(v)
    np.add.at(expected, states[:-1], 0.1 * (target - row[1])[0].numpy())
    found = moves_of_traces(v, states, rewards, terminated, decay, 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_scans_of_the_library_are_the_loops_of_the_tables():
    states, rewards = episode(seed=3)
    value = np.random.default_rng(4).normal(size=6)[states]
    row = torch.tensor([rewards], dtype=torch.float64)
    every, last = row == row, torch.tensor([value[-1]])
    scanned = rlkern.discounted_return(row, every, discount=0.9, bootstrap=last)
    np.testing.assert_allclose(scanned[0], returns(rewards, value[-1], 0.9), rtol=1e-12)

    def n_step(t: int, n: int) -> float:
        return returns(rewards[t : t + n], value[t + n], 0.9)[0]

    length, decay = len(rewards), 0.8
    for n in (1, 4, length):
        windows = [n_step(t, min(n, length - t)) for t in range(length)]
        scanned = rlkern.n_step_return(
            row, torch.tensor(value[None, :-1]), every, n=n, discount=0.9, bootstrap=last
        )
        np.testing.assert_allclose(scanned[0], windows, rtol=1e-12)
    # Sutton & Barto, eq. 12.3: the weighted mean of all n-step returns.
    weighted = []
    for t in range(length):
        left = length - t
        found = sum((1 - decay) * decay ** (n - 1) * n_step(t, n) for n in range(1, left))
        weighted.append(found + decay ** (left - 1) * n_step(t, left))
    scanned = rlkern.lambda_return(
        row, torch.tensor(value[None, :-1]), every, discount=0.9, gae_lambda=decay, bootstrap=last
    )
    np.testing.assert_allclose(scanned[0], weighted, rtol=1e-12)


@pytest.mark.parametrize("states, left", [(5, 0.0), (19, -1.0)])
def test_dynamic_programming_gives_the_values_of_the_walk(states, left):
    env = make(f"RandomWalk{states}-v0", {})
    expected = left + (1 - left) * np.arange(1, states + 1) / (states + 1)
    np.testing.assert_allclose(true_values(env, np.ones((states, 1)), 1.0), expected, atol=1e-12)


def test_dynamic_programming_leaves_out_what_the_policy_does_not_reach():
    env = make("CliffWalking-v1", {})
    up, right, down = 0, 1, 2
    policy = np.zeros((48, 4))
    policy[36, up] = policy[24:35, right] = policy[35, down] = 1.0  # along the edge
    values = true_values(env, policy, 1.0)
    assert values[36] == -13 and values[35] == -1 and np.isnan(values[0])
    assert sure_path(env, policy.argmax(-1)).total == -13


def test_the_wind_makes_fifteen_moves_the_fewest():
    env = make("WindyGridworld-v0", {}).unwrapped
    places, moves, over = {30}, 0, False
    while not over:
        outcomes = [env.P[place][action][0] for place in places for action in range(4)]
        places, moves = {each[1] for each in outcomes}, moves + 1
        over = any(each[3] for each in outcomes)
    assert moves == 15


def test_a_world_of_a_table_draws_its_outcomes_by_their_shares():
    outcomes = [(0.2, 0, 1.0, True), (0.0, 0, 2.0, True), (0.8, 0, 3.0, True)]
    world = TableWorld({0: {0: outcomes}}, 0)
    world.reset(seed=0)
    given = np.array([world.step(0)[1] for _ in range(4000)])
    assert (given == 2.0).sum() == 0 and np.mean(given == 1.0) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    "name, env, more",
    [
        ("q_learning", "CliffWalking-v1", {}),
        ("sarsa", "FrozenLake-v1", {}),
        ("mc_control", "Blackjack-v1", {}),
        ("td_zero", "RandomWalk19-v0", {}),
        ("td_n", "WindyGridworld-v0", {}),
        ("mc_first_visit", "Blackjack-v1", {"policy": "stick_on_20"}),
        ("td_lambda", "Taxi-v4", {}),
    ],
)
def test_a_run_ends_with_a_picture_of_its_values(name, env, more, tmp_path):
    endless = {} if env.startswith(("Taxi", "Frozen")) else {"eval_length": 100}
    run(tmp_path, algorithm=name, env=env, steps=300, eval_episodes=1, name="x", **endless, **more)
    assert (tmp_path / "x" / "values.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--policy", "stick_on_20"], "policy must be one of uniform for RandomWalk5-v0"),
        (
            ["--policy", "hit", "--env", "Blackjack-v1"],
            "policy must be one of uniform, stick_on_20",
        ),
        (["--env", "Frozen-v0"], "env must be the id of a gymnasium environment"),
        (["--env", "Endless-v0"], "discount must be below 1"),
    ],
)
def test_a_policy_that_cannot_be_judged_is_refused(flags, sentence, tmp_path, capsys):
    env = [] if "--env" in flags else ["--env", "RandomWalk5-v0"]
    given = ["--algorithm", "td_zero", *env, *flags, "--output_dir", str(tmp_path)]
    assert cli.main(["control", *given]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())
