# SPDX-License-Identifier: Apache-2.0
"""Rewards of one's own: where they are found, what they are given, what is said of bad ones."""

import inspect
import re
import shutil

import pytest
import torch
import yaml
from own_reward_helpers import REWARD, reward_folder  # noqa: F401
from trainer_helpers import compiled  # noqa: F401

from rlkern.cli import main
from rlkern.runs import code
from rlkern.runs.errors import RewardError
from rlkern.runs.settings.layers import Layer
from rlkern.trainer.data.chat import Chat
from rlkern.trainer.data.examples import Example
from rlkern.trainer.reward.asking import Limits
from rlkern.trainer.reward.functions import (
    Rewards,
    limited,
    load_rewards,
    reward_statistics,
    score_completions,
    task_reward,
)
from rlkern.trainer.reward.signatures import of_verl, reads_text
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import resolve
from rlkern.trainer.settings.resolve import differing
from rlkern.trainer.tasks.addition import addition
from rlkern.trainer.tasks.task import Item

pytestmark = pytest.mark.usefixtures("compiled")


def asked(functions, items, texts, transcript=None):
    rewards = Rewards([limited(f, Limits()) for f in functions], [1.0] * len(functions))
    return score_completions(rewards, items, texts, transcript=transcript)[1].T.tolist()


def test_a_file_of_a_reward_is_found_from_where_one_stands_and_from_its_config(folder, tmp_path):
    given = resolve(Layer("flags", {"reward.functions": "my_reward.py:score,task"}))
    assert given.reward.functions == (f"{folder / 'my_reward.py'}:score", "task")
    inside = folder / "configs"
    inside.mkdir()
    shutil.move(folder / "my_reward.py", inside / "other.py")
    config = inside / "run.yaml"
    config.write_text("reward: other.py:score")
    for source in (str(config), f"{config}, stage grpo"):
        beside = resolve(Layer(source, yaml.safe_load(config.read_text())))
        assert beside.reward.functions == (f"{inside / 'other.py'}:score",)
    assert load_rewards(beside, addition(seed=0, eval_items=2)).names == ["score"]


def test_a_reward_that_was_moved_is_the_same_and_another_function_is_not(folder):
    first = resolve(Layer("flags", {"reward": "my_reward.py:score"}))
    (folder / "there").mkdir()
    shutil.copy(folder / "my_reward.py", folder / "there")
    assert differing(first, resolve(Layer("", {"reward": "there/my_reward.py:score"}))) is None
    other = resolve(Layer("", {"reward": "my_reward.py:level"}))
    assert differing(first, other)[0] == "reward.functions"


def test_a_changed_file_is_read_again_and_has_another_digest(folder):
    name, path = "my_reward.py:number", folder / "my_reward.py"
    before, first = code.digests(name, "task"), code.load(name, "reward")
    path.write_text(REWARD.replace("number = 3", "number = 4"))
    assert (first, code.load(name, "reward")) == (3, 4)
    after = code.digests(name)
    assert before.keys() == after.keys() == {name} and before != after


WRONG = {
    "nothing.py:score": "'nothing.py:score': there is no file nothing.py",
    "my_reward.py:scroe": "has no 'scroe'; it has score, level",
    "my_reward.py:number": "must be a function, got int",
    "my_reward.py": "FILE.py:function, module:function or a reward model",
    "my_reward.py:needs_state": "needs the argument 'trainer_state', which nothing gives it: .*"
    r"columns of sums.jsonl \(answer, level, prompt\)",
    "my_reward.py:no_answers": "must take prompts and completions.* it takes prompts",
    "broken.py:score": "cannot be imported: SyntaxError",
    "my_verl.py:compute_score": "has verl's signature and needs 'judge'",
    "my_verl.py:named": "has verl's signature and needs 'judge'",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reward_that_cannot_be_asked_is_one_sentence_before_anything_is_written(
    folder, capsys, name
):
    (folder / "broken.py").write_text("def score(:")
    verl = "def compute_score(solution_str, ground_truth, judge):\n    return 0\n"
    verl += "def named(solution_str, ground_truth, *, judge):\n    return 0\n"
    (folder / "my_verl.py").write_text(verl)
    for command in (["reward", name], ["train", "--reward", name]):
        assert main([*command, "--data.train", "sums.jsonl"]) == 2
        sentence = capsys.readouterr().err
        assert re.search(WRONG[name], sentence), sentence
        assert sentence.count("\n") == 1
    assert not (folder / "runs").exists()


def chat_item(answer="2", **columns):
    said = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"})
    return Item("1+1?", answer, columns, row=Example("x, line 1", Chat(said), columns=columns))


def test_a_function_is_given_messages_where_the_prompt_is_messages_as_trl_does():
    seen = []

    def score(prompts, completions, **columns):
        seen.append((prompts, completions))
        return [0.0] * len(prompts)

    item = chat_item()
    texts = asked([score, task_reward(addition(seed=0, eval_items=1))], [item], ["2"])
    assert texts == [[0.0], [1.0]]  # the task's own is given texts
    said = [{"role": "assistant", "content": "2"}]
    assert seen == [([list(item.row.prompt.messages)], [said])]
    both = [*said, {"role": "tool", "content": "4"}]
    asked([score], [item], ["2"], transcript=[both])
    assert seen[1][1] == [both]
    asked([score], [Item("1+1=", "2")], ["2"])
    assert seen[2] == (["1+1="], ["2"])
    asked([reads_text(score)], [item], ["2"])
    assert seen[3] == (["1+1?"], ["2"])


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    right = solution_str == str(ground_truth)
    return {"score": float(right) + len(extra_info), "acc": right, "source": data_source}


async def compute_later(solution_str, ground_truth):
    return float(solution_str == str(ground_truth))


def test_a_function_of_verls_is_asked_about_each_answer_with_its_own_arguments():
    seen = []

    def spy(**given):
        seen.append(given)
        return compute_score(**given)

    columns = {"data_source": "gsm8k", "reward_model": {"ground_truth": 2}, "extra_info": {"n": 1}}
    spy.__signature__ = inspect.signature(compute_score)
    function = of_verl(spy, "sums.jsonl")
    assert function.__name__ == "spy"
    items = [chat_item(**columns), Item("1+2=", "3")]
    assert asked([function], items, ["2", "4"]) == [[2.0, 0.0]]
    assert seen[0] == {
        "data_source": "gsm8k",
        "solution_str": "2",
        "ground_truth": 2,
        "extra_info": {"n": 1},
    }
    assert (seen[1]["data_source"], seen[1]["ground_truth"]) == ("sums.jsonl", "3")
    assert asked([of_verl(compute_later, "x")], items, ["2", "3"]) == [[1.0, 1.0]]


def test_a_function_of_verls_may_have_defaults_and_keywords():
    def score(solution_str, ground_truth, *, extra_info, strict=True, **more):
        return float(solution_str == ground_truth and strict)

    assert asked([of_verl(score, "x")], [Item("a", "b")] * 2, ["b", "c"]) == [[1.0, 0.0]]


def test_what_verls_functions_return_and_raise_is_held_to():
    def without(solution_str, ground_truth):
        return {"acc": 1.0}

    def raises(solution_str, ground_truth):
        return 1 / 0

    with pytest.raises(RewardError, match="without must return .* with 'score', got one with 'ac"):
        asked([of_verl(without, "x")], [Item("a", "b")], ["c"])
    line = raises.__code__.co_firstlineno + 1
    with pytest.raises(RewardError, match=f"ZeroDivisionError: .*test_own_rewards.py, line {line}"):
        asked([of_verl(raises, "x")], [Item("a", "b")], ["c"])


def test_a_reward_is_tried_on_right_empty_and_other_answers(folder, capsys):
    name = "my_reward.py:score,my_reward.py:level"
    assert main(["reward", name, "--data.train", "sums.jsonl", "--items", "3"]) == 0
    lines = [
        [w for w in line.split() if w not in "│┃"] for line in capsys.readouterr().out.split("\n")
    ]
    means = [line[1:] for line in lines if line[:1] == ["mean"]]
    assert means == [["1.000", "0.000", "0.000"], ["1.000"] * 3]
    first = next(line for line in lines if line[:2] == ["line", "1"])
    assert first[2:] == ["'0+1='", "'1'", "1.000", "0.000", "0.000"]
    assert main(["reward", name, "--data.train", "sums.jsonl"]) == 0
    (warned,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("level gives")]
    assert warned.startswith("level gives right answers 4.800, empty ones 4.800 and others' 4.800")
    assert warned.endswith("as the file writes it")  # on one line, however wide the terminal is
    assert not (folder / "runs").exists()


def test_a_tried_reward_fails_as_in_a_run(folder, capsys):
    (folder / "bad.py").write_text("def score(prompts, completions):\n    return [1 / 0]\n")
    data = ["--data.train", "sums.jsonl"]
    assert main(["reward", "bad.py:score", *data]) == 2
    assert "score raised ZeroDivisionError: division by zero (bad.py, line 2)" in (
        capsys.readouterr().err
    )
    assert main(["reward", "exact"]) == 2 and main(["reward", "exact", *data, "--items", "0"]) == 2
    said = capsys.readouterr().err
    assert "add --data.train FILE or --task NAME" in said and "items must be at least 1" in said


def exact(completions, item):
    return [1.0] * len(completions)


def test_equal_rewards_have_no_spread_though_one_answer_has_none():
    """In float32 seven times 0.1 have another mean; 0.2 beside it has a spread."""
    one = torch.zeros(1, 1, dtype=torch.int64)
    answers = torch.zeros(8, 1, dtype=torch.int64)
    found = {}
    for last in (0.1, 0.2):
        reward = torch.tensor([0.1] * 6 + [last, torch.nan])
        rows = Rows(
            prompt=one, prompt_mask=one.bool(), token=answers, mask=answers.bool(),
            present=answers.bool(), rollout_logprob=answers.float(), reward=reward,
            rewards=reward[:, None],
        )  # fmt: skip
        found[last] = reward_statistics(rows, Rewards([exact], [1.0]))
    assert found[0.1]["frac_reward_zero_std"] == 1 and found[0.1]["rewards/exact/std"] == 0
    assert found[0.2]["frac_reward_zero_std"] == 0 and found[0.2]["rewards/exact/std"] > 0.03
