# SPDX-License-Identifier: Apache-2.0
"""A judge of two answers as a reward of the trainer."""

import inspect
import itertools

import pytest
from trainer_helpers import begun, compiled, small  # noqa: F401

from rlkern.trainer import UserError
from rlkern.trainer.reward.functions import reward_name
from rlkern.trainer.reward.pairwise import NEUTRAL, win_rate_of

pytestmark = pytest.mark.usefixtures("compiled")


def longer(prompt, a, b):
    return 0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b)))


def test_a_win_rate_is_the_share_of_the_others_that_an_answer_beats():
    prompts, answers = ["p", "q", "p", "p", "p", "r"], ["aa", "a", "a", "aa", "aaaa", "a"]
    found = win_rate_of(longer)(prompts, answers)
    # Of p: "aa" beats "a", ties with "aa", loses to "aaaa"; alone with q and r.
    assert found == pytest.approx([0.5, NEUTRAL, 0.0, 0.5, 1.0, NEUTRAL])
    for order in itertools.permutations(range(4)):
        some = [answers[i] for i in (0, 2, 3, 4)]
        again = win_rate_of(longer)(["p"] * 4, [some[i] for i in order])
        assert again == pytest.approx([[0.5, 0.0, 0.5, 1.0][i] for i in order])


def test_each_pair_is_asked_once_and_what_cannot_be_told_is_left_out():
    asked = []

    def judge(prompt, a, b):
        asked.append((prompt, a, b))
        return None if "?" in a + b else 1.0

    found = win_rate_of(judge)(["p"] * 3 + ["q"] * 2, ["a", "b", "?", "?", "c"])
    assert asked == [("p", "a", "b"), ("p", "a", "?"), ("p", "b", "?"), ("q", "?", "c")]
    assert found == [1.0, 0.0, None, None, None]


def test_the_trainer_takes_a_judge_for_a_reward_and_names_one_that_fails(tmp_path, monkeypatch):
    import trainer_rewards

    monkeypatch.setattr(trainer_rewards, "judge", win_rate_of(longer), raising=False)
    assert reward_name(trainer_rewards.judge) == "longer"
    assert list(inspect.signature(trainer_rewards.judge).parameters) == ["prompts", "completions"]
    _, learner, updater = begun(
        small(tmp_path, sft=None, reward__functions="trainer_rewards:judge"), tmp_path
    )
    values, _ = learner.step(updater, lambda sentence: None)
    assert values["reward"] == values["rewards/longer/mean"] == pytest.approx(0.5)
    assert values["reward_std"] > 0
    monkeypatch.setattr(trainer_rewards, "judge", win_rate_of(lambda prompt, a, b: 2.0))
    _, learner, updater = begun(
        small(tmp_path, sft=None, reward__functions="trainer_rewards:judge"), tmp_path
    )
    with pytest.raises(
        UserError, match="raised ValueError: a judge of two answers must return a nu"
    ):
        learner.step(updater, lambda sentence: None)
