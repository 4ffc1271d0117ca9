# SPDX-License-Identifier: Apache-2.0
"""What an environment of one's own may be: ours, TRL's, verifiers', a task; and what is no such."""

import importlib
import re
import sys

import pytest
from environment_helpers import ENVIRONMENT, call, folder, talk  # noqa: F401
from trainer_helpers import ROOT, compiled  # noqa: F401

from rlkern.cli import main
from rlkern.runs.errors import RewardError
from rlkern.runs.logs import read_metrics
from rlkern.trainer.settings import of
from rlkern.trainer.tasks.registry import make_task

pytestmark = pytest.mark.usefixtures("compiled")
WRONG = {
    "nothing.py:make": "there is no file nothing.py",
    "my_env.py:mkae": "has no 'mkae'; it has ",
    "my_env.py:no_score": r"environment my_env.py:no_score has no score .* name another --reward",
    "my_env.py:without_words": "tool undescribed needs type hints and a docstring with Args",
    "my_env.py:of_nothing": "must have items, it has none",
    "my_env.py:of_texts": "item 1 must be a mapping with a prompt, got str",
    "my_env.py:rows_of_a_file": "has no items: add --data.train FILE",
    "my_env.py:named": "taskset of verifiers, got Named; it has no score",
    "my_env.py:raises": r"raised KeyError: 'nothing' \(my_env.py, line \d+\)",
    "my_env.py:Counter": "has no items: add --data.train FILE",
    "my_env.py:Silent --data.train rows.jsonl": "has no score .TRL's get_reward",
    "my_env.py:make --data.train rows.jsonl": "has items of its own: leave data.train out",
    "my_env.py:make --data.options.cuont 3": "has no|unexpected|TypeError",
    "my_env.py:no_score --data.options.count 3": r"takes nothing \(data.options\), got count",
    "my_env.py:make --data.chat false": "data.chat is read by runs that have a data.train and no",
    "needs_verifiers.py:make": "No module named 'verifiers.*: pip install verifiers",
}


@pytest.mark.parametrize("words", WRONG)
def test_an_environment_that_cannot_be_used_is_one_sentence_before_anything_is_written(
    folder,  # noqa: F811
    capsys,
    monkeypatch,
    words,
):  # noqa: F811
    (folder / "needs_verifiers.py").write_text("import verifiers.v1\n")
    monkeypatch.setitem(sys.modules, "verifiers", None)  # as if it were not installed
    assert main(["train", "--sft", "null", "--task", *words.split()]) == 2
    sentence = capsys.readouterr().err
    assert re.search(WRONG[words], sentence) and sentence.count("\n") == 1, sentence
    assert not (folder / "runs").exists()


def test_what_an_environment_raises_is_said_with_its_file_and_line(folder):  # noqa: F811
    for part in ("reply", "score"):
        text = ENVIRONMENT.replace(
            f"def {part}(row, messages):", f"def {part}(row, messages):\n    1 / 0"
        )
        (folder / f"bad_{part}.py").write_text(text)
        with pytest.raises(
            RewardError, match=rf"{part} raised ZeroDivisionError.*bad_{part}.py, li"
        ):
            talk(f"bad_{part}.py:make", "7", "8", "9")


def test_an_environment_of_trls_has_its_tools_its_rows_and_its_reward(folder):  # noqa: F811
    keys = {"data.train": "rows.jsonl"}
    said = [call("step", by=1), call("step", by=2), "done", "done"]
    rows, task, policy, items = talk("my_env.py:Counter", *said, group_size=2, **keys)
    assert items[0].asked.messages[-1]["content"] == items[0].prompt
    assert items[0].prompt.endswith("? From 0.")
    assert [t["function"]["name"] for t in items[0].asked.tools] == ["step"]
    totals = [each[1]["content"] for each in rows.transcript]
    assert totals == ["now 1", "now 2"]
    assert rows.verdict == [float(items[0].answer == n) for n in "12"]
    with pytest.raises(RewardError, match="reset must return the same for the same row"):
        talk("my_env.py:Unsteady", "x", **keys)


def test_an_environment_is_tried_as_a_reward(folder, capsys):  # noqa: F811
    given = ["--task", "my_env.py:make", "--items", "2"]
    assert main(["reward", "task", *given]) == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.split("\n")]
    assert ["mean", "1.000", "0.000", "0.000"] in lines


def test_a_task_that_a_function_makes_is_taken_as_it_is(folder, capsys):  # noqa: F811
    (folder / "whole.py").write_text(
        "from rlkern.trainer.tasks.guess import guess\n"
        "def make(seed, eval_items, name='mine'):\n"
        "    import dataclasses\n"
        "    return dataclasses.replace(guess(seed=seed, eval_items=eval_items), name=name)\n"
    )
    task = make_task(of(**{"task": "whole.py:make", "eval.items": 7, "seed": 3}))
    assert (task.name, len(task.held_out), task.max_turns) == ("mine", 7, 3)
    assert (
        main(["train", "--task", "whole.py:make", "--data.system", "Hi", "--eval.items", "5"]) == 2
    )
    assert "is a Task, which makes its own items and does not read data.system" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ("calculator", "game"))
def test_the_examples_of_environments_run(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    page = importlib.import_module("own_environment")
    keys = {"sft.steps": 3, "sft.target": 0, "sft.batch": 8, "threads": 1, "batch.prompts": 4}
    more = {"rollout.group_size": 2, "eval.items": 4, "eval.modes": "sampled"}
    keys = {**keys, **more, "reward.degenerate_limit": 0}
    summary = page.main(name, folder=tmp_path, steps=1, **keys)
    assert 0 <= summary["eval/reward_sampled_after"] <= 1
    lines = read_metrics(tmp_path / f"own-{name}")
    assert lines[-1]["conversations/messages"] >= 1.0
    items = page.__dict__[name]().items
    right = items[0]["completion"]
    assert page.__dict__[name]().score(items[0], right) == 1.0
