# SPDX-License-Identifier: Apache-2.0
"""Completions on the disk, `rlkern show` and `rlkern export`."""

import json
import shutil

import pyarrow.dataset
import pytest
import torch
from data_helpers import data_file
from look_helpers import SYSTEM, chat_settings, refused, said
from rich.console import Console
from trainer_helpers import any_algorithm, changed, compiled, settings, small  # noqa: F401

from rlkern.runs import parquet
from rlkern.runs.logs import read_metrics
from rlkern.trainer import UserError, train
from rlkern.trainer.models.load import load_policy
from rlkern.trainer.offline.pairs import Pair
from rlkern.trainer.reward.model import load_scorer, scores
from rlkern.trainer.rollout.text import given_rows
from rlkern.trainer.run import checkpoint
from rlkern.trainer.show.completions import question
from rlkern.trainer.show.display import Display
from rlkern.trainer.show.keys import COMPLETIONS
from rlkern.trainer.tasks.task import Item

pytestmark = pytest.mark.usefixtures("compiled")

CPU = torch.device("cpu")


def table(run):
    """Returns the rows of the whole folder, as any reader of Parquet sees it."""
    return pyarrow.dataset.dataset(run / COMPLETIONS).to_table().to_pylist()


def test_completions_are_the_rollouts_that_the_metrics_are_of(chats):
    rows, lines = table(chats), {line["step"]: line for line in read_metrics(chats)}
    assert parquet.steps_in(chats / COMPLETIONS) == [1, 2, 4, 5]
    for step in (1, 2, 4, 5):
        own, line = [row for row in rows if row["step"] == step], lines[step]
        mean = {key: sum(row[key] for row in own) / len(own) for key in own[0] if key in line}
        assert len(own) == 16 and mean["reward"] == pytest.approx(line["reward"], abs=1e-6)
        for name in ("exact", "even_digits"):
            share = sum(row[f"rewards/{name}"] for row in own) / 16
            assert share == pytest.approx(line[f"rewards/{name}/mean"], abs=1e-6)
        assert sum(row["cut_off"] for row in own) / 16 == line["completions/clipped_ratio"]
        assert sum(row["length"] for row in own) / 16 == line["completions/mean_length"]
        for group in range(4):
            assert sum(row["advantage"] for row in own[4 * group : 4 * group + 4]) == pytest.approx(
                0, abs=1e-5
            )
    first = rows[0]
    assert first["prompt"] == f"<system>{SYSTEM}<eos><user>{first['question']}<eos><assistant>"
    a, b = first["question"].removesuffix("=").split("+")
    assert first["answer"] == str(int(a) + int(b))
    assert first["rewards/exact"] == (first["completion"].strip() == first["answer"])
    assert first["shaped_reward"] == first["reward"]


def test_a_resume_takes_the_rows_past_its_checkpoint_again(chats, tmp_path):
    config = chat_settings(tmp_path, sft__steps=4, eval__every=0)
    run = tmp_path / "runs" / "run"
    train(changed(config, steps=3))
    shutil.rmtree(run / "checkpoint-3")
    kept = (run / COMPLETIONS / "step-00000002.parquet").read_bytes()
    half = run / ".partial-step-00000004.parquet"
    half.write_bytes(b"PAR1")
    train(changed(config, steps=4), resume=True)
    assert parquet.steps_in(run / COMPLETIONS) == [1, 2, 4] and not half.exists()
    assert (run / COMPLETIONS / "step-00000002.parquet").read_bytes() == kept


@pytest.mark.parametrize("changes", [{"output__completions": 0}, {"algorithm": "sft", "sft": None}])
def test_a_run_that_is_not_asked_or_samples_nothing_writes_none(tmp_path, changes):
    train(small(tmp_path, name="run", steps=1, eval__items=4, **changes))
    assert not (tmp_path / "runs" / "run" / COMPLETIONS).exists()


def test_a_write_that_fails_leaves_what_is_there(tmp_path, monkeypatch):
    types = {"step": "int32"}
    parquet.write_step(tmp_path / "x.parquet", 1, {"step": [1, 1]}, types)
    with pytest.raises(Exception, match="int32"):
        parquet.write_step(tmp_path / "x.parquet", 1, {"step": ["a"]}, types)
    assert parquet.read_step(tmp_path / "x.parquet", 1) == [{"step": 1}, {"step": 1}]
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
    (tmp_path / "x.parquet" / "step-00000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"step-00000002.parquet cannot be read: .*; delete it"):
        parquet.read_step(tmp_path / "x.parquet", 2)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs the package pyarrow.*or --output.completions 0"):
        parquet.check_installed("output.completions", "--output.completions 0")


def test_a_person_sees_the_question_and_not_the_template(capsys):
    assert question(Item("Q: 1 + 1? A:", "2", {"question": "1 + 1?"}), settings()) == "1 + 1?"
    own = settings(data={"train": "x.jsonl", "columns": {"prompt": "sum"}})
    assert question(Item("x: 2", "2", {"question": "no", "sum": "x"}), own) == "x"
    display = Display(Console(width=80))
    display.samples(1, [("What is " + "1 + " * 30, "a\nb", 0.5)])
    out = capsys.readouterr().out
    assert "question" in out and "'What is 1 +" in out and r"'a\nb'" in out
    assert max(map(len, out.splitlines())) <= 80


def shown(capsys, monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "80")
    out = said(capsys, "show", *arguments)
    assert max(map(len, out.splitlines())) <= 80
    return out


def test_show_says_what_a_run_was_and_how_it_went(capsys, monkeypatch, chats):
    out = shown(capsys, monkeypatch, chats)
    assert out.startswith("run: grpo, tiny, chats.jsonl; step 5 of 5, ")
    for key, value in (("data.system", "Add."), ("reward.functions", "exact"), ("steps", "5")):
        assert any(key in line and value in line for line in out.splitlines())
    assert "output.dir" in out and "data.too_long" not in out and "algorithm" not in out
    last = read_metrics(chats)[-1]
    (reward,) = (line for line in out.splitlines() if line.startswith("│ reward  "))
    rewards = [line["reward"] for line in read_metrics(chats) if "reward" in line]
    assert [cell.strip() for cell in reward.split("│")][2:4] == [
        f"{rewards[0]:.3f}",
        f"{last['reward']:.3f}",
    ]
    assert rewards[0] != rewards[1]
    assert f"{last['eval/reward_sampled']:.3f}" in out and "before" in out
    assert "step 5: the first 4 of 16 completions" in out and out.count("question") == 4
    assert "<user>" not in out


def test_show_orders_the_completions_of_a_step(capsys, monkeypatch, chats):
    rows = [row for row in table(chats) if row["step"] == 2]
    for kind, pick in (("best", max), ("worst", min)):
        out = shown(capsys, monkeypatch, chats, "--step", 2, f"--{kind}", "--limit", 1)
        found = pick(row["reward"] for row in rows)
        assert f"step 2: the {kind} of 16 completions" in out
        assert f"reward {found:.3g}, exact" in out
    said_ = " ".join(shown(capsys, monkeypatch, chats, "--step", 2, "--limit", 16).split())
    assert said_.count(", cut off") == sum(row["cut_off"] for row in rows)
    assert said_.count(" right ") == sum(bool(row["answer"]) for row in rows)
    assert "question" not in shown(capsys, monkeypatch, chats, "--limit", 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--step", 3], " wrote (1, 2, 4, 5), got 3"),
        (["--limit", -1], "limit must be 0 or more, got -1"),
        (["--best", "--worst"], "not allowed with argument"),
        (["--bests"], "there is no flag --bests; did you mean --best"),
    ],
    ids=str,
)
def test_a_wrong_question_is_one_sentence(capsys, chats, arguments, sentence):
    assert sentence in refused(capsys, "show", chats, *arguments)
    assert "show one of" in refused(capsys, "show", chats.parent)


def exported(capsys, run, folder, *arguments):
    """Returns the model and the tokenizer that others load from an exported folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert str(folder) in said(capsys, "export", run, folder, *arguments)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 12)[None]).logits


def test_an_exported_run_is_the_policy_to_the_last_bit(capsys, chats, tmp_path):
    (tmp_path / "out").mkdir()  # an empty folder may be there
    model, tokenizer = exported(capsys, chats, tmp_path / "out", "--checkpoint", "newest")
    policy = load_policy(chats / "checkpoint-5", device=CPU, dtype="float32")
    assert torch.equal(logits(model), logits(policy.model))
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.do_sample and model.generation_config.top_k == 0
    half, _ = exported(capsys, chats, tmp_path / "half", "--dtype", "bfloat16")
    assert half.dtype == torch.bfloat16


def test_the_card_says_what_the_model_is(capsys, chats, tmp_path):
    said(capsys, "export", chats, tmp_path / "out", "--checkpoint", 4)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (
        "from tiny with grpo on the data chats.jsonl, seed 0: the checkpoint after step 4" in card
    )
    state = checkpoint.read_settings(chats / "checkpoint-5")[0]
    assert state["progress"]["data"]["data.train"] in card
    values = {line["step"]: line for line in read_metrics(chats)}
    assert "| | before | step 5 (step 4 was not evaluated) |" in card
    assert (
        f"| {values[0]['eval/reward_greedy']:.3f} | {values[5]['eval/reward_greedy']:.3f} |" in card
    )
    assert "| `data.system` | `Add.` | `null` |" in card and "output.dir" not in card
    assert str(tmp_path.parent) not in card and "torch 2." in card
    assert (tmp_path / "out" / "curves.png").read_bytes() == (chats / "curves.png").read_bytes()


def test_adapters_are_exported_in_the_weights(capsys, chats, tmp_path):
    train(
        small(
            tmp_path,
            name="lora",
            model=str(chats / "checkpoint-5"),
            task="addition",
            steps=2,
            sft=None,
            eval__items=4,
            lora__rank=2,
            lora__targets="all-linear,lm_head",
            optimizer__lr=0.05,
            data={},
        )
    )
    run = tmp_path / "runs" / "lora"
    model, _ = exported(capsys, run, tmp_path / "out", "--checkpoint", "newest")
    adapted = load_policy(run / "checkpoint-2", device=CPU, dtype="float32")
    start = load_policy(chats / "checkpoint-5", device=CPU, dtype="float32")
    torch.testing.assert_close(logits(model), logits(adapted.model), atol=1e-5, rtol=1e-5)
    assert (logits(model) - logits(start.model)).abs().max() > 1e-3
    assert "peft" in (tmp_path / "out" / "README.md").read_text()


def test_a_reward_model_is_exported_as_a_classifier(capsys, tmp_path):
    from transformers import AutoModelForSequenceClassification

    pairs = str(data_file(tmp_path, "pairs"))
    train(
        any_algorithm(
            tmp_path, "reward_model", name="rm", steps=3, data__train=pairs, eval__items=8
        )
    )
    run = tmp_path / "runs" / "rm"
    said(capsys, "export", run, tmp_path / "out", "--checkpoint", "newest")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    policy = load_scorer(run / "checkpoint-3", device=CPU, dtype="float32")
    pair = Pair("1+2=", "3", "4")
    rows = given_rows(policy, [pair.prompt], [pair.chosen, pair.rejected], stop="")
    token = torch.cat([rows.prompt.expand(2, -1), rows.token], 1)
    with torch.no_grad():
        found = model(token, attention_mask=torch.ones_like(token)).logits[:, 0]
        torch.testing.assert_close(found, scores(policy, rows))
    assert found.abs().max() > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A reward model, trained" in card and "An answer is scored at `<eos>`" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]


def test_what_cannot_be_exported_is_refused_before_anything_is_written(capsys, chats, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    new = tmp_path / "new"
    for arguments, sentence in (
        ([chats, full], "must be a folder that is empty or not there yet"),
        ([chats, full / "x"], "must be a folder that is empty or not there yet"),
        ([chats, full / "x" / "y"], "cannot be written"),
        (
            [chats, tmp_path / (long := "a" * 250)],
            f"{long} cannot be written: File name too long\n",
        ),
        ([chats, new, "--dtype", "int8"], "dtype must be one of float32, bfloat16, float16"),
        ([chats, new, "--checkpoint", 2], "checkpoint must be best, newest or a step"),
        ([tmp_path, new], "must be a run directory or a checkpoint of one"),
        ([chats], "the following arguments are required: folder"),
    ):
        assert sentence in refused(capsys, "export", *arguments)
    assert not new.exists() and [path.name for path in full.iterdir()] == ["x"]
