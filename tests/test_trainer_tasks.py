# SPDX-License-Identifier: Apache-2.0
"""Tasks and rewards: what is held out stays held out, and rewards keep their contract."""

import math

import pytest
import torch
from trainer_helpers import (
    addition_task,
    compiled,  # noqa: F401
    settings,
)

from rlkern.runs.errors import UserError
from rlkern.trainer.reward.functions import (
    Rewards,
    load_rewards,
    reward_statistics,
    score_completions,
)
from rlkern.trainer.rows import Rows
from rlkern.trainer.tasks.addition import addition
from rlkern.trainer.tasks.reasoning import question_key
from rlkern.trainer.tasks.registry import make_task
from rlkern.trainer.tasks.task import first_line

pytestmark = pytest.mark.usefixtures("compiled")

ARITHMETIC = {
    "task": "arithmetic", "seed": 3, "eval__items": 60, "data__shots": 1,
    "data__template": "{expression} = ",
}  # fmt: skip


def task_of(**changes):
    """Returns the task of settings: a__b for the key a.b."""
    return make_task(settings(**changes))


def test_no_addition_pair_is_both_trained_on_and_held_out_in_any_order():
    task = addition_task(eval_items=500)
    held = {item.key for item in task.held_out}
    items, position = task.next_items(0, 20_000)
    trained = {item.key for item in items}
    assert not held & trained
    assert position > 20_000, "items that are held out in the other order are passed over"
    assert len(trained | held) == 5050, "all unordered pairs of 0..99 occur in one of the two"


@pytest.mark.parametrize("name", ["arithmetic", "gcd"])
def test_no_question_of_a_reasoning_family_is_both_trained_on_and_held_out(name):
    pytest.importorskip("reasoning_gym")
    given = {"arithmetic": ARITHMETIC, "gcd": {"task": "gcd", "seed": 0, "eval__items": 30}}
    task = task_of(**given[name])
    held = {item.key for item in task.held_out}
    assert len(held) == len(task.held_out)
    items, _ = task.next_items(0, 2000)
    assert not held & {item.key for item in items}


def test_streams_of_other_seeds_are_other_items_and_not_the_same_ones_shifted():
    pytest.importorskip("reasoning_gym")
    first, second = (task_of(task="gcd", seed=seed, eval__items=30) for seed in (0, 1))
    questions = [[item.prompt for item in t.next_items(0, 200)[0]] for t in (first, second)]
    assert len(set(questions[0]) & set(questions[1])) < 20
    held = {item.prompt for item in first.held_out}
    assert len(held & {item.prompt for item in second.held_out}) < 5


@pytest.mark.parametrize("name", ["acre", "gsm_symbolic", "list_functions", "word_ladder"])
def test_a_family_that_makes_its_entries_at_once_is_asked_in_lots(name):
    pytest.importorskip("reasoning_gym")
    task = task_of(task=name, seed=0, eval__items=5)
    items = [task.item(place) for place in (0, 1, 999, 1000, 2001)]
    assert len({item.prompt for item in items}) > 1
    assert [task.score(f"{item.answer}\n", item) for item in items] == [1.0] * 5


def test_lots_of_a_family_are_one_stream():
    gym = pytest.importorskip("reasoning_gym")
    task = task_of(task="gcd", seed=0, eval__items=5)
    whole = gym.create_dataset("gcd", seed=0, size=1_000_000_000)
    places = (0, 999, 1000, 1001, 54_321, 2)
    found = [task.item(place).columns["question"] for place in places]
    assert found == [whole[place]["question"] for place in places]


def test_solved_examples_are_neither_trained_on_nor_change_what_is_held_out():
    pytest.importorskip("reasoning_gym")
    tasks = [task_of(**{**ARITHMETIC, "data__shots": shots}) for shots in (0, 8)]
    asked = [[item.columns["question"] for item in task.held_out] for task in tasks]
    assert asked[0] == asked[1]
    trained = {item.key for item in tasks[1].next_items(0, 2000)[0]}
    assert len(tasks[1].shown) == 8 and not tasks[1].shown & trained


@pytest.mark.parametrize("name", ["addition", "guess", "arithmetic", "gcd"])
def test_a_fresh_model_has_a_token_for_every_character_of_its_task(name):
    if name in ("arithmetic", "gcd"):
        pytest.importorskip("reasoning_gym")
    task = task_of(task=name, seed=0, eval__items=30)
    text = task.stop + "".join(i.prompt + i.answer for i in task.held_out)
    assert set(text) <= set(task.alphabet)


def test_a_template_of_another_form_is_one_sentence():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match="data.template must name only"):
        task_of(**{**ARITHMETIC, "data__template": "{question.x}"})


def test_operands_in_the_other_order_are_the_same_question():
    assert question_key("Calculate 3 + 14.") == question_key("Calculate 14 + 3.")
    assert question_key("Calculate 3 - 14.") != question_key("Calculate 14 - 3.")


def test_the_position_alone_decides_which_items_come_next():
    first, again = addition_task(), addition_task()
    items, middle = first.next_items(0, 50)
    more, end = first.next_items(middle, 9000)
    assert again.next_items(middle, 9000) == (more, end)
    assert more[-1] != items[-1]


def test_a_verifier_reads_the_first_line_and_gives_no_partial_credit():
    pytest.importorskip("reasoning_gym")
    task = task_of(**ARITHMETIC)
    item = task.held_out[0]
    assert task.score(f" {item.answer} \nand more", item) == 1.0
    assert task.score(f"{item.answer}0", item) == 0.0
    assert task.score(f"the answer is {item.answer}", item) == 0.0
    assert task.score("", item) == 0.0
    assert first_line("  7 \n8") == "7"


def test_an_example_before_the_question_has_the_form_of_the_question():
    pytest.importorskip("reasoning_gym")
    prompt = task_of(**ARITHMETIC).held_out[0].prompt
    example, question = prompt.split("\n")
    left, answer = example.split(" = ")
    assert str(sum(map(int, left.split(" + ")))) == answer
    assert question.endswith(" = ")


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("adition", {}, "there is no task 'adition'.*did you mean addition"),
        ("arithmetic", {"data__options": {"max_digit": 3}}, "data.options .* do not fit"),
        ("arithmetic", {"data__template": "{questoin}"}, "data.template must name only .*question"),
        ("addition", {"data__shots": 1}, "data.shots is read by runs that ask a reasoning-gym fam"),
        ("addition", {"eval__items": 9000}, "eval.items must be at most"),
        (
            "arithmetic",
            {"eval__items": 100, "data__options": {"max_digits": 1}},
            "lower eval.items",
        ),
    ],
)
def test_settings_a_task_cannot_use_are_one_sentence(name, changes, sentence):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=sentence):
        task_of(**{"task": name, "eval__items": 5, **changes})


def items_of(count):
    return addition_task().next_items(0, count)[0]


def counted(*functions):
    return Rewards(list(functions), [1.0] * len(functions))


def statistics(rewards, completions, group_size):
    """Returns what is logged of the rewards of completions, so many to each prompt."""
    B = len(completions)
    reward, by_function = score_completions(rewards, items_of(B), completions)
    prompt, token = torch.zeros(B // group_size, 1).long(), torch.zeros(B, 1).long()
    rows = Rows(
        prompt=prompt, prompt_mask=prompt == 0, token=token, mask=token == 0, present=token == 0,
        rollout_logprob=token.float(), reward=reward, rewards=by_function,
    )  # fmt: skip
    return reward_statistics(rows, rewards)


def test_a_reward_of_weight_zero_is_logged_and_does_not_count():
    def one(prompts, completions):
        return [1.0] * len(completions)

    def unknown(prompts, completions):
        return [None, 5.0]

    rewards = Rewards([one, unknown], [0.5, 0.0])
    reward, _ = score_completions(rewards, items_of(2), ["a", "b"])
    assert reward.tolist() == [0.5, 0.5]
    assert statistics(rewards, ["a", "b"], 2)["rewards/unknown/mean"] == 5.0
    rewards = Rewards([one, unknown], [0.0, 2.0])
    reward, _ = score_completions(rewards, items_of(2), ["a", "b"])
    assert math.isnan(reward[0]) and reward[1] == 10.0


def test_every_reward_needs_a_weight():
    with pytest.raises(UserError, match="reward.weights must hold a number for each of 2 rewards"):
        settings(reward__functions="task,task", reward__weights=[1.0])


def test_columns_reach_a_reward_function_that_asks_for_them():
    seen = {}

    def greedy_for_columns(prompts, completions, **columns):
        seen.update(columns)
        return [1.0] * len(completions)

    def wants_answer(prompts, completions, answer):
        return [float(text == right) for text, right in zip(completions, answer)]

    items = items_of(3)
    completions = [items[0].answer, "x", items[2].answer]
    rewards = counted(greedy_for_columns, wants_answer)
    reward, _ = score_completions(rewards, items, completions)
    assert reward.tolist() == [2.0, 1.0, 2.0]
    assert seen["answer"] == [item.answer for item in items]


def test_none_means_unscorable():
    def half(prompts, completions):
        return [None, 1.0, 0.0, 1.0]

    reward, _ = score_completions(counted(half), items_of(4), ["a", "b", "c", "d"])
    assert math.isnan(reward[0])
    assert statistics(counted(half), ["a", "b", "c", "d"], 4)["reward"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda prompts, completions: [1.0], "<lambda> must return 2 rewards, got 1"),
        (lambda prompts, completions: 3, "<lambda> must return 2 rewards in a list, got 3"),
        (lambda prompts, completions: None, "<lambda> must return 2 rewards in a list, got None"),
        (lambda prompts, completions: [1.0, float("nan")], "finite numbers or None, got nan"),
        (lambda prompts, completions: [float("inf"), 0.0], "finite numbers or None, got inf"),
        (lambda prompts, completions: ["good", 0.0], "finite numbers or None, got 'good'"),
        (lambda prompts, completions: 1 / 0, "<lambda> raised ZeroDivisionError"),
    ],
)
def test_a_reward_function_that_breaks_its_contract_is_named_in_one_sentence(function, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        score_completions(counted(function), items_of(2), ["1", "2"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["nothing", "no_such_module:f", "math:no_such_function", "math:pi"]
)
def test_a_reward_that_is_not_a_function_is_one_sentence(name):
    with pytest.raises(UserError, match="reward"):
        load_rewards(settings(reward__functions=name), addition_task())


def test_two_rewards_of_one_name_are_logged_apart():
    rewards = Rewards([lambda **_: [1.0, 3.0], lambda **_: [5.0, 7.0]], [1.0, 1.0])
    assert rewards.names == ["<lambda>", "<lambda>_2"]
    values = statistics(rewards, ["1", "2"], 2)
    assert values["rewards/<lambda>/mean"] == 2.0 and values["rewards/<lambda>_2/mean"] == 6.0


def test_a_reward_that_float32_cannot_hold_is_refused():
    huge = Rewards([lambda **_: [1e300, 1.0]], [1.0])
    with pytest.raises(UserError, match="must return finite numbers or None, got 1e.300"):
        score_completions(huge, items_of(2), ["1", "2"])


def test_statistics_count_groups_whose_rewards_are_all_equal():
    def parity(prompts, completions):
        return [0.1, 0.1, 0.1, 1.0, 0.0, 1.0]

    values = statistics(counted(parity), ["x"] * 6, 3)
    assert values["frac_reward_zero_std"] == 0.5
    assert values["rewards/parity/mean"] == pytest.approx(values["reward"])


def test_the_seed_of_addition_chooses_what_is_held_out():
    first, second = (addition(seed=seed, eval_items=50).held_out for seed in (0, 1))
    assert {item.prompt for item in first} != {item.prompt for item in second}
