# SPDX-License-Identifier: Apache-2.0
"""What learners move their tables by, against numbers worked out by hand."""

import pytest

pytest.importorskip("gymnasium")

from rlkern.control import algorithms, of  # noqa: E402
from rlkern.control.environments import Environments  # noqa: E402
from rlkern.control.updates import Transition  # noqa: E402


@pytest.mark.parametrize(
    "name, more, moved",
    [
        ("q_learning", (), 0.85),  # ½·(−1 + 0.9·3)
        ("expected_sarsa", (), 0.7375),  # 0.05·1 + 0.45·3 + 0.45·3 + 0.05·0 = 2.75 in place of 3
        ("double_q_learning", (), -0.05),  # the best by one table is worth 1 by the other
        ("sarsa", (0, False), -0.05),  # the action that follows is worth 1
        ("sarsa_lambda", (0, False), -0.05),
    ],
)
def test_a_learner_moves_its_table_by_what_was_worked_out_by_hand(name, more, moved):
    settings = of(
        algorithm=name, env="CliffWalking-v1", learning_rate=0.5, discount=0.9, epsilon=0.2
    )
    learner = algorithms()[name].learner(settings, Environments(settings.env, {}, 1, 0))
    learner.q[7] = [1.0, 3.0, 3.0, 0.0]
    tables = [learner.q]
    if hasattr(learner, "other"):
        learner.other[7] = [4.0, 1.0, 2.0, 0.0]
        tables.append(learner.other)
    learner.learn(Transition(3, 1, -1.0, 7, False), *more)
    assert sorted(table[3, 1] for table in tables)[0 if moved < 0 else -1] == pytest.approx(moved)


@pytest.mark.parametrize(
    "terminated, moved", [(True, [1.5, 3.0, 4.0, 4.0]), (False, [1.5, 3.5, 5.0, 6.0])]
)
def test_the_last_steps_of_an_episode_are_learnt_from_with_the_rewards_that_are_left(
    terminated, moved
):
    """Three rewards and γ = ½; after the episode 8 or nothing: 2 + 2 + 2 + 8/8, 4 + 4 + 8/4, 8 + 4,
    of which α takes a half."""
    settings = of(
        algorithm="n_step_sarsa", env="CliffWalking-v1", learning_rate=0.5, discount=0.5, n=3
    )
    learner = algorithms()["n_step_sarsa"].learner(settings, Environments(settings.env, {}, 1, 0))
    learner.q[9] = 8.0
    for state, reward in enumerate([1.0, 2.0, 4.0, 8.0]):
        last = state == 3
        step = Transition(state, 0, reward, 9 if last else state + 1, terminated and last)
        learner.learn(step, 0, last)
    assert learner.q[:4, 0].tolist() == moved and not learner.window
