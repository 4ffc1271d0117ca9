# SPDX-License-Identifier: Apache-2.0
"""Runs on files of one's own: every format with every algorithm that takes it, and what is held
out, measured, kept and refused."""

import json

import pytest
import torch
from data_helpers import ROWS, asked, data_file, sums, write
from keys_helpers import run_of, step
from rich.console import Console
from trainer_helpers import compiled, loaded, small, without_times  # noqa: F401

from rlkern.runs.logs import read_metrics
from rlkern.trainer import UserError, train
from rlkern.trainer.offline.supervised import right_answers
from rlkern.trainer.show.display import Display
from rlkern.trainer.tasks.registry import make_task

pytestmark = pytest.mark.usefixtures("compiled")

FEW = {"rollout__max_new_tokens": 4, "steps": 2, "sft": None, "eval__items": 20}
EVEN = {"reward__functions": "trainer_rewards:even_digits"}


def own(tmp_path, form, algorithm="grpo", **changes):
    """Returns the settings of a small run on a file in a form of ROWS."""
    given = {"algorithm": algorithm, **FEW, **changes}
    path = given.pop("path", None) or data_file(tmp_path, form)
    if algorithm in ("sft", "dpo", "kto", "reward_model") and "pairs__source" not in changes:
        given.pop("rollout__max_new_tokens")
    return small(tmp_path, data__train=str(path), **given)


def quietly(settings, **more):
    return train(settings, display=Display(Console(quiet=True)), **more)


TAKES = {
    "grpo": ("prompts", "chats"),
    "ppo": ("prompts", "chats"),
    "sft": ("prompts", "completions", "messages", "turns", "text", "pairs", "chats"),
    "dpo": ("pairs", "chat_pairs"),
    "kto": ("pairs", "chat_pairs", "labels"),
    "reward_model": ("pairs", "chat_pairs"),
}


@pytest.mark.parametrize(
    "algorithm, form", [(a, form) for a, every in TAKES.items() for form in every]
)
def test_a_run_learns_from_a_file(tmp_path, algorithm, form):
    summary = quietly(own(tmp_path, form, algorithm))
    assert summary["task"] == f"{form}.jsonl"
    assert summary["eval/accuracy_after"] == summary["eval/accuracy_after"]  # a number
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == f"{algorithm}-tiny-{form}"
    assert not (run / "pairs").exists()


def test_pairs_are_sampled_for_the_prompts_of_a_file(tmp_path):
    start = {"steps": 12, "target": 0.0, "batch": 16}
    given = {"pairs__source": "sampled", "pairs__items": 24, "sft": start, **EVEN}
    quietly(own(tmp_path, "chats", "dpo", **given))
    (run,) = (tmp_path / "runs").iterdir()
    (first, *_) = (run / "pairs" / "train.jsonl").read_text().splitlines()
    assert json.loads(first)["prompt"]["messages"][0]["role"] == "user"
    assert len(read_metrics(run)) == 3


@pytest.mark.parametrize(
    "algorithm, form",
    [
        ("grpo", "chats"),
        ("ppo", "prompts"),
        ("sft", "turns"),
        ("dpo", "pairs"),
        ("kto", "labels"),
        ("reward_model", "chat_pairs"),
    ],
)
def test_a_resumed_run_takes_the_steps_of_a_whole_one(tmp_path, algorithm, form):
    given = {"steps": 4, "output__save_every": 2, "name": "run"}
    whole = own(tmp_path, form, algorithm, **given)
    quietly(whole)
    (tmp_path / "half").mkdir()
    half = own(tmp_path / "half", form, algorithm, **given)
    quietly(half.model_copy(update={"steps": 2}))
    moved = tmp_path / "moved.jsonl"
    (tmp_path / "half" / f"{form}.jsonl").rename(moved)
    again = half.model_copy(update={"data": half.data.model_copy(update={"train": str(moved)})})
    quietly(again, resume=True)
    one, other = (
        without_times(read_metrics(folder / "runs" / "run"))
        for folder in (tmp_path, tmp_path / "half")
    )
    assert [line for line in other if line["step"] > 2] == [
        line for line in one if line["step"] > 2
    ]
    data_file(tmp_path, form, sums(9), "moved.jsonl")
    with pytest.raises(
        UserError, match=r"data.train .*moved.jsonl has changed since the run began"
    ):
        quietly(again.model_copy(update={"steps": 5}), resume=True)


def test_a_part_that_the_seed_chooses_is_held_out_with_its_duplicates(tmp_path):
    rows = [ROWS["prompts"](a, b) for a, b in sums(5)] * 2
    path = write(tmp_path / "x.jsonl", rows)
    task = make_task(own(tmp_path, "", path=path))
    held = {item.prompt for item in task.held_out}
    assert len(task.held_out) == len(held) == 5 and len(task.rows) == 40
    assert not held & {item.prompt for item in task.rows}
    assert task.notes == (
        "x.jsonl: 40 rows to learn from, 5 held out (by the seed); 5 rows left out, whose prompts"
        " are held out",
    )
    other = make_task(own(tmp_path, "", path=path, seed=1))
    assert {item.prompt for item in other.held_out} != held
    fewer = make_task(own(tmp_path, "", path=path, eval__items=2))
    assert fewer.held_out == task.held_out[:2]


def test_a_file_of_held_out_rows_is_taken_in_its_order_and_not_learned_from(tmp_path):
    held = data_file(tmp_path, "prompts", sums(4), "test.jsonl")
    task = make_task(own(tmp_path, "prompts", data__eval=str(held), eval__items=3))
    assert [item.prompt for item in task.held_out] == ["0+0=", "0+1=", "0+2="]
    assert len(task.rows) == 97
    with pytest.raises(UserError, match="every row is held out; lower eval.items"):
        make_task(own(tmp_path, "", path=held, data__eval=str(held)))
    with pytest.raises(UserError, match="pairs.jsonl, line 1 must be of the form of data.train"):
        make_task(own(tmp_path, "prompts", data__eval=str(data_file(tmp_path, "pairs"))))
    with pytest.raises(UserError, match="form of data.train, whose rows have a label$"):
        make_task(
            own(tmp_path, "labels", "kto", data__eval=str(data_file(tmp_path, "completions")))
        )


def test_held_out_items_are_measured_by_the_runs_own_reward(tmp_path):
    settings = own(tmp_path, "prompts", **EVEN, eval__samples=2, eval__pass_at=2)
    summary = quietly(settings)
    assert "eval/accuracy_sampled_after" not in summary
    assert summary["eval/accuracy_after"] == summary["eval/reward_sampled_after"]
    assert 0 < summary["eval/reward_sampled_before"] < 1  # no text of this file is a right answer
    assert "eval/pass@2_after" in summary


def test_a_reward_is_given_every_column_and_the_question(tmp_path, monkeypatch):
    seen = {}

    def look(prompts, completions, **columns):
        seen.update(columns, prompts=prompts)
        return [float(len(text)) for text in completions]

    monkeypatch.setattr("trainer_rewards.even_digits", look)
    step(run_of(tmp_path, data__train=str(data_file(tmp_path, "chats")), **{**FEW, **EVEN}))
    assert set(seen) == {
        "prompts",
        "prompt",
        "answer",
        "level",
        "item",
        "prompt_ids",
        "completion_ids",
    }
    for said, level, answer in zip(seen["prompts"], seen["level"], seen["answer"], strict=True):
        a, b = said[-1]["content"].removesuffix("=").split("+")
        assert (level, answer) == (int(a), str(int(a) + int(b)))


def test_only_what_the_assistant_says_is_learned(tmp_path):
    parts = loaded(own(tmp_path, "turns", "sft"))
    items, _ = parts.task.next_items(0, 3)
    rows = right_answers(parts.policy, items, parts.task)
    for item, token, mask, present in zip(items, rows.token, rows.mask, rows.present, strict=True):
        right = item.row.target[0]["content"]
        assert parts.policy.tokenizer.decode(token[mask]) == f"{right}<eos>" * 2
        assert parts.policy.tokenizer.decode(token[present & ~mask]).startswith("<user>")
    assert torch.equal(rows.present, rows.present.sort(-1, descending=True).values)


@pytest.mark.parametrize(
    "algorithm, form, changes, words",
    [
        (
            "grpo",
            "messages",
            {},
            "messages.jsonl, line 1: its messages end with the assistant where",
        ),
        ("grpo", "text", {}, "line 1: algorithm grpo needs a prompt, and plain text has none"),
        (
            "grpo",
            "completions",
            {"reward__functions": "task"},
            "reward task compares with an answer",
        ),
        ("grpo", "prompts", {"data__columns": {"answer": "x"}}, "there is no column 'x'"),
        (
            "dpo",
            "prompts",
            {},
            "line 1: algorithm dpo learns from columns chosen and rejected; name",
        ),
        (
            "dpo",
            "labels",
            {},
            "line 1: algorithm dpo learns from columns chosen and rejected; name",
        ),
        ("kto", "prompts", {}, "chosen and rejected, or completion and label"),
        ("grpo", "chats", {"sft": {"steps": 2}, "data__columns": {"answer": "level"}}, None),
        (
            "sft",
            "chats",
            {"data__chat": False},
            "column prompt must hold .* data.chat false is for",
        ),
    ],
)
def test_a_file_that_an_algorithm_cannot_learn_from_is_refused_before_anything_is_written(
    tmp_path, algorithm, form, changes, words
):
    settings = own(tmp_path, form, algorithm, **changes)
    if words is None:
        loaded(settings)
        return
    with pytest.raises(UserError, match=words) as caught:
        quietly(settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"prompt": "a", "answer": 1}] * 9, "at least 5 different prompts, of which one is held"),
        ([{"prompt": asked(a, b)} for a, b in sums(3)], "reward task compares with an answer"),
    ],
)
def test_rows_that_leave_nothing_to_measure_are_refused(tmp_path, rows, words):
    path = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match=words):
        make_task(own(tmp_path, "", path=path, reward__functions="task"))


def test_labels_of_one_kind_are_refused(tmp_path):
    rows = [{**ROWS["labels"](a, b), "label": True} for a, b in sums(4)]
    path = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match="x.jsonl must have true and false labels"):
        quietly(own(tmp_path, "", "kto", path=path))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"data.train": "x", "task": "guess"}, "task is read by runs that have no data.train"),
        ({"data.eval": "x"}, "data.eval is read by runs that have a data.train"),
        ({"algorithm": "dpo", "pairs": "data"}, "data are the pairs of data.train, which must be"),
        (
            {"algorithm": "dpo", "data.train": "x", "pairs": "facts"},
            "pairs.source facts and data.train x both name pairs",
        ),
        (
            {"data.train": "x", "data.system": "a", "data.template": "{a}"},
            "data.template makes a text of a prompt and data.system a message",
        ),
        (
            {"data.train": "x", "data.system": "a", "data.chat": False},
            "data.system is a message of a chat template, which data.chat false leaves out",
        ),
        (
            {"data.train": "x", "data.shots": 3},
            "data.shots is read by runs that ask a reasoning-gym family, which this one does not",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(given, words):
    from rlkern.trainer.settings import Layer, resolve

    with pytest.raises(UserError, match=words):
        resolve(Layer("flags", given))
