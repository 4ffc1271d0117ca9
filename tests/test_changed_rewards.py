# SPDX-License-Identifier: Apache-2.0
"""What is said of a reward that changed since a run began: on resume, and where it is measured."""

import json

import pytest
from own_reward_helpers import REWARD, reward_folder  # noqa: F401
from trainer_helpers import compiled  # noqa: F401

from rlkern.cli import main

pytestmark = pytest.mark.usefixtures("compiled")


def test_a_run_goes_on_from_another_directory_and_says_that_its_reward_changed(
    folder, monkeypatch, capsys
):
    few = "--sft.steps 2 --eval.items 3 --batch.prompts 2 --rollout.group_size 2 --threads 1"
    keys = f"{few} --rollout.max_new_tokens 3 --reward.degenerate_limit 0".split()
    data, reward = ["--data.train", str(folder / "sums.jsonl")], ["--reward", "my_reward.py:level"]
    assert main(["train", *keys, *data, *reward, "--steps", "1", "--name", "a"]) == 0
    saved = json.loads((folder / "runs/a/checkpoint-1/trainer.json").read_text())["progress"]
    assert saved["data"].keys() == {"data.train", "my_reward.py:level"}
    (folder / "my_reward.py").write_text(REWARD + "\n# mended\n")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert main(["train", "--resume", str(folder / "runs/a"), "--steps", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "my_reward.py:level has changed since the run began" in said
    assert main(["train", "--resume", str(folder / "runs/a"), "--steps", "3"]) == 0
    assert "has changed" not in capsys.readouterr().out


def test_an_evaluation_says_that_the_reward_of_a_run_changed_and_refuses_other_rows(folder, capsys):
    few = "--sft.steps 2 --eval.items 3 --batch.prompts 2 --rollout.group_size 2 --threads 1"
    keys = f"{few} --rollout.max_new_tokens 3 --reward.degenerate_limit 0 --steps 1".split()
    data, reward = ["--data.train", "sums.jsonl"], ["--reward", "my_reward.py:level"]
    assert main(["train", *keys, *data, *reward, "--name", "a"]) == 0
    capsys.readouterr()
    assert main(["eval", "runs/a"]) == 0
    assert "has changed" not in capsys.readouterr().err
    (folder / "my_reward.py").write_text(REWARD + "\n# mended\n")
    assert main(["eval", "runs/a"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "my_reward.py:level has changed since the run began" in said
    assert "these numbers are the new one's" in said
    rows = (folder / "sums.jsonl").read_text()
    (folder / "sums.jsonl").write_text(rows.splitlines()[0] + "\n" + rows)
    assert main(["eval", "runs/a"]) == 2
    assert "sums.jsonl has changed since the run began" in capsys.readouterr().err
    assert main(["eval", "runs/a", "--task", "addition"]) == 0  # asks nothing of the file


def test_a_changed_reward_is_said_once_of_a_run_that_is_measured_twice(folder, capsys):
    text = "def digits(prompts, completions):\n    return [sum(map(ord, c)) for c in completions]\n"
    (folder / "digits.py").write_text(text)
    keys = "--algorithm dpo --sft.steps 2 --eval.items 3 --batch.prompts 2 --steps 1 --threads 1"
    keys += " --pairs.source sampled --pairs.items 9 --rollout.group_size 4"
    keys += " --rollout.max_new_tokens 3 --data.train sums.jsonl --reward digits.py:digits --name a"
    assert main(["train", *keys.split()]) == 0
    (folder / "digits.py").write_text(f"{text}\n# mended\n")
    capsys.readouterr()
    assert main(["eval", "runs/a"]) == 0  # by its pairs, and by answers
    assert capsys.readouterr().err.count("has changed since the run began") == 1
