# SPDX-License-Identifier: Apache-2.0
"""The page about data of one's own runs as it is written, and so do its examples."""

import importlib
import io
import json
import re
import shlex

import pytest
from trainer_helpers import ROOT, compiled  # noqa: F401

from rlkern.cli import main
from rlkern.runs.settings.layers import leaves
from rlkern.trainer.reward.functions import load_rewards, score_completions
from rlkern.trainer.settings import Settings, of
from rlkern.trainer.tasks.registry import make_task

PAGE = ROOT / "docs" / "your-data.md"
BLOCK = re.compile(r"```(python|bash)( \w+\.py)?\n(.*?)```", re.DOTALL)
# Fewer steps and items than on the page: whether it learns is not this test's question.
SHORT = {"--steps": "2", "--eval.items": "8", "--batch.prompts": "4", "--threads": "1"}
SHORT_START = {"--sft.steps": "4"}

pytestmark = pytest.mark.usefixtures("compiled")


def shortened(words):
    """Returns the words of a command with fewer steps."""
    if words[1] != "train":
        return words[1:]
    algorithm = words[words.index("--algorithm") + 1] if "--algorithm" in words else "grpo"
    starts = algorithm == "grpo" and "null" not in words
    for flag, value in {**SHORT, **(SHORT_START if starts else {})}.items():
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    return words[1:]


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("3 plus 4?\n/reset\n/quit\n"))
    for language, file, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if file:
            (tmp_path / file.strip()).write_text(text)
            continue
        if language == "python":
            few = text.replace("range(100)", "range(15)")
            exec(compile(few, str(PAGE), "exec"), {})
            continue
        for line in text.strip().splitlines():
            words = shlex.split(line)
            assert words[0] == "rlkern"
            assert main(shortened(words)) == 0, f"{line}\n{capsys.readouterr().err}"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "sums",
        "close",
        "talk",
        "chat",
        "better",
    }
    assert (tmp_path / "better-model" / "chat_template.jinja").is_file()


def test_every_key_on_the_page_exists():
    known = {key for key, _ in leaves(Settings)} | {"data.columns.prompt", *Settings.model_fields}
    text = PAGE.read_text(encoding="utf-8")
    keys = set(
        re.findall(
            r"(?:--|`)((?:data|reward|eval|rollout|sft|optimizer|batch)\.\w+(?:\.\w+)?)", text
        )
    )
    assert keys and not {key for key in keys if not key.startswith("data.options.")} - known


def example(monkeypatch, name):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module(name)


def test_the_example_of_a_file_and_a_reward_of_ones_own_runs(tmp_path, monkeypatch):
    page = example(monkeypatch, "own_data")
    few = {"sft.steps": 4, "sft.target": 0, "threads": 1, "eval.items": 20}
    summary = page.main(folder=tmp_path, steps=2, **few)
    assert 0 <= summary["eval/reward_sampled_after"] <= 1
    assert page.score([], ["046", "045"], ["046", "046"]) == [1.0, pytest.approx(1 / 3)]


def test_the_example_of_sft_and_dpo_on_messages_runs(tmp_path, monkeypatch):
    page = example(monkeypatch, "sft_dpo_messages")
    first, second = page.main(folder=tmp_path, steps=(2, 2), threads=1)
    assert first["eval/loss_after"] < first["eval/loss_before"]
    assert 0 <= second["eval/pair_accuracy_after"] <= 1


def test_the_example_of_a_teacher_runs(tmp_path, monkeypatch):
    page = example(monkeypatch, "distillation")
    few = {"threads": 1, "eval.items": 20, "batch.prompts": 8}
    summary = page.main(folder=tmp_path, steps=2, taught=3, **few)
    assert summary["algorithm"] == "on_policy_distillation"
    assert (tmp_path / "teacher" / "best").is_dir()


def test_the_example_of_short_sentences_writes_rows_and_checks_answers(tmp_path, monkeypatch):
    page = example(monkeypatch, "short_sentences")
    monkeypatch.setattr(page, "HELD_OUT", 10)
    text = " ".join([f"{a}{b}word" for a in "abcdefg" for b in "abcdefg"] * 2)
    assert page.write(tmp_path / "train.jsonl", tmp_path / "eval.jsonl", text) == [39, 10]
    asked = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert all(row["word"] in row["messages"][0]["content"] for row in asked)
    said = ["The paper was on his table.", "Paper. I like paper.", "He is"]
    rewards = page.score([[{"role": "assistant", "content": x}] for x in said], ["paper"] * 3)
    assert rewards == pytest.approx([1, 1 / 3, 0])
    settings = of(
        **{
            "algorithm": "grpo",
            "model": "tiny",
            "sft": None,
            "data.train": str(tmp_path / "train.jsonl"),
            "reward.functions": f"{ROOT}/examples/short_sentences.py:score",
        }
    )
    (first, *_) = (task := make_task(settings)).rows
    found = score_completions(load_rewards(settings, task), [first], [f"It is {first.columns}."])
    assert 0 <= found[0].item() <= 1


def test_a_novel_comes_with_reasoning_gym(monkeypatch):
    pytest.importorskip("reasoning_gym")
    page = example(monkeypatch, "short_sentences")
    assert len(page.words_of(page.novel())) > 500
