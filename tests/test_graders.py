# SPDX-License-Identifier: Apache-2.0
"""Rewards that have a name alone, on answers as models give them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from trainer_helpers import settings

from rlkern.trainer import UserError
from rlkern.trainer.reward import graders
from rlkern.trainer.reward.functions import load_rewards, score_completions
from rlkern.trainer.tasks.task import Item


def graded(name, right, *answers):
    """Returns what a reward says of answers to one item, as a run asks it."""
    rewards = load_rewards(settings(reward__functions=name), task=None)
    items = [Item("?", right)] * len(answers)
    return score_completions(rewards, items, list(answers))[0].tolist()


@pytest.mark.parametrize(
    "right, answers, expected",
    [
        ("42", ["So it is 42.", "#### 42", "\\boxed{42}", "43", "none"], [1, 1, 1, 0, 0]),
        ("1/2", ["$\\frac{1}{2}$", "0.5", "The half, 1/2.", "2"], [1, 1, 1, 0]),
        ("\\frac{1}{2}", ["0.5"], [1]),
        ("x^2+1", ["$1+x^2$", "$x^2$"], [1, 0]),
    ],
)
def test_math_compares_values_and_not_how_they_are_written(right, answers, expected):
    pytest.importorskip("math_verify")
    assert graded("math", right, *answers) == expected


def test_math_may_be_asked_by_a_thread(monkeypatch):
    pytest.importorskip("math_verify")
    graders._gold.cache_clear()
    with ThreadPoolExecutor(1) as pool:  # where a time limit by signal cannot be set
        assert pool.submit(graded, "math", "3/4", "0.75", "1").result() == [1, 0]
        assert pool.submit(graded, "math", "\\frac{3}{4}", "0.75").result() == [1]


def test_math_cannot_tell_where_the_right_answer_is_no_mathematics():
    pytest.importorskip("math_verify")
    (found,) = graded("math", "", "42")
    assert found != found


def test_text_is_compared_as_a_whole_or_looked_for():
    assert graded("exact", " yes", "yes\n", "Yes", "yes, it is") == [1, 0, 0]
    assert graded("contains", "yes", "yes\n", "Yes", "oh yes, it is") == [1, 0, 1]


def test_json_is_an_object_or_a_list_alone_or_fenced():
    answers = ['{"a": [1]}', "[]", '```json\n{"a": 1}\n```', "3", '{"a": }', 'so: {"a": 1}']
    assert graded("json", "", *answers) == [1, 1, 1, 0, 0, 0]


def test_a_pattern_is_looked_for_in_an_answer():
    answers = ["<think>a\nb</think> 7", "7", "<think></think> 7"]
    assert graded(r"regex:<think>.+</think>\s*\d+$", "", *answers) == [1, 0, 0]


def test_several_are_summed_by_their_weights_and_logged_by_their_names():
    given = settings(reward__functions="exact,json", reward__weights=[1.0, 0.5])
    rewards = load_rewards(given, task=None)
    assert rewards.names == ["exact", "json"]
    total, each = score_completions(rewards, [Item("?", "[1]")] * 2, ["[1]", "[2]"])
    assert total.tolist() == [1.5, 0.5] and each.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    "name, words",
    [
        ("regex:(", r"reward regex:\( must hold a pattern: "),
        (
            "maths",
            "must be task, math, exact, contains, json, regex:PATTERN, .*; did you mean math",
        ),
    ],
)
def test_a_name_that_is_none_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        graded(name, "", "")


def test_math_without_its_package_is_refused_before_a_run_begins(monkeypatch):
    from rlkern.trainer.reward import graders

    graders._math_verify.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    with pytest.raises(UserError, match="reward math needs the package math-verify: pip install"):
        load_rewards(settings(reward__functions="math"), task=None)
    graders._math_verify.cache_clear()
