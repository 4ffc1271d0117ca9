# SPDX-License-Identifier: Apache-2.0
"""Going on with a run: what may change, from where, past what is damaged, and out of memory."""

import dataclasses
import importlib
import io
import json
import re
import shutil
import traceback
import types

import pytest
import torch
from data_helpers import data_file
from look_helpers import chat_settings
from rich.console import Console
from trainer_helpers import changed, compiled, fastest, small, without_times  # noqa: F401

import rlkern
from rlkern import cli
from rlkern.runs.folder import all_checkpoints
from rlkern.runs.logs import read_metrics
from rlkern.trainer import UserError, train
from rlkern.trainer.loop import Clock
from rlkern.trainer.progress import Progress
from rlkern.trainer.run import checkpoint
from rlkern.trainer.run.sentences import say_finished
from rlkern.trainer.show.display import Display

pytestmark = pytest.mark.usefixtures("compiled")

QUICK = {"eval__items": 8, "eval__every": 0, "sft__steps": 4, "output__log": []}


def printed(config, **how):
    """Returns what a run prints, on one line."""
    out = io.StringIO()
    train(config, display=Display(Console(file=out, width=400)), **how)
    return " ".join(out.getvalue().split())


def curve(run):
    return without_times(read_metrics(run))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the settings and the directory of a run of four steps, which nobody changes."""
    folder = tmp_path_factory.mktemp("finished")
    config = small(folder, name="run", steps=4, **QUICK)
    with rlkern.use_backend(fastest()):
        train(config)
    return config, folder / "runs" / "run"


@pytest.fixture
def again(finished, tmp_path):
    """Returns the settings and the directory of a copy of that run."""
    config, run = finished
    shutil.copytree(run, tmp_path / "runs" / "run", symlinks=True)
    return changed(config, output__dir=str(tmp_path / "runs")), tmp_path / "runs" / "run"


def test_what_changes_no_result_may_change(again, finished):
    config, run = again
    shutil.rmtree(run / "checkpoint-4")
    free = {
        "batch__micro_batches": 2,
        "memory__gradient_checkpointing": True,
        "memory__share_prompts": False,
        "eval__every": 1,
        "eval__samples": 2,
        "eval__batch": 3,
        "eval__keep_best": False,
        "output__log_every": 2,
        "output__completions": 1,
        "threads": 0,
        "device": "auto",
    }
    train(changed(config, **free), resume=True)
    ends = [curve(folder)[-1] for folder in (finished[1], run)]
    for key in ("reward", "loss", "grad_norm", "entropy", "num_tokens", "learning_rate"):
        assert ends[1][key] == pytest.approx(ends[0][key], rel=1e-3, abs=1e-5)
    for key, value in (("eval.items", 4), ("eval.modes", ["greedy"]), ("batch.prompts", 2)):
        other = changed(config, **{key.replace(".", "__"): value})
        with pytest.raises(UserError, match=f"was started with {key}"):
            train(other, resume=True)


@pytest.mark.parametrize(
    ("file", "kept", "why"),
    [
        ("model.safetensors", 0.5, "model.safetensors: "),
        ("optimizer.safetensors", 0.0, "optimizer.safetensors: "),
        ("trainer.json", 0.9, "trainer.json: "),
        ("random.safetensors", None, "random.safetensors is not there"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_damage_is_found_without_loading_a_checkpoint(again, file, kept, why):
    _, run = again
    assert checkpoint.newest(run) == (run / "checkpoint-4", {})
    broken = run / "checkpoint-4" / file
    data = broken.read_bytes()
    broken.unlink()
    if kept is not None:
        broken.write_bytes(data[: int(kept * len(data))])
    found, damaged = checkpoint.newest(run)
    assert found == run / "checkpoint-2"
    assert list(damaged) == [run / "checkpoint-4"] and damaged[run / "checkpoint-4"].startswith(why)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(again, finished):
    config, run = again
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    said = printed(config, resume=True)
    assert re.search(
        r"checkpoint-4 is damaged \(model.safetensors: .*\); the run goes on after checkpoint-2,"
        " and keeps it as damaged-checkpoint-4",
        said,
    )
    assert "going on after checkpoint-2" in said and "has taken all" not in said
    assert curve(run) == curve(finished[1]) and (run / "damaged-checkpoint-4").is_dir()
    assert checkpoint.damage(run / "checkpoint-4") is None


def test_a_run_without_a_whole_checkpoint_says_what_is_wrong_with_each(again):
    config, run = again
    for folder in all_checkpoints(run):
        (folder / "trainer.json").write_text("{")
    with pytest.raises(UserError, match=r"no whole .*\(checkpoint-4: trainer.json: .*checkpoint-2"):
        train(config, resume=True)
    assert (run / "checkpoint-4").is_dir()


def test_a_finished_run_says_so(again):
    config, run = again
    said = printed(config, resume=True)
    assert "has taken all of its 4 steps; more are taken with a larger --steps" in said
    parts = types.SimpleNamespace(
        settings=changed(config, optimizer__decay="linear"), progress=Progress(step=4)
    )
    found = []
    say_finished(parts, run, found.append)
    assert "has decayed by them" in found[0]
    say_finished(
        types.SimpleNamespace(settings=config, progress=Progress(step=3)), run, pytest.fail
    )


def test_a_run_goes_on_from_any_directory_after_its_model_has_moved(
    chats, tmp_path, monkeypatch, capsys
):
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir(), away.mkdir()
    shutil.copytree(chats / "checkpoint-5", home / "model")
    data_file(home, "chats")
    monkeypatch.chdir(home)
    config = chat_settings(home, steps=1, model="model", sft=None, eval__every=0)
    train(changed(config, data__train="chats.jsonl", output__dir="runs"))
    shutil.move(home / "model", tmp_path / "moved")
    monkeypatch.chdir(away)
    assert cli.main(["train", "--resume", "../home/runs/run", "--steps", "2"]) == 0
    assert read_metrics(home / "runs" / "run")[-1]["step"] == 2
    assert not list(away.iterdir())


NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.parametrize(
    ("place", "caller", "error", "sentence"),
    [
        (
            "update.Updater.step",
            "learner.py",
            torch.OutOfMemoryError("CUDA out of memory."),
            "while learning; what helps, in this order: --batch.micro_batches 2,"
            " --memory.gradient_checkpointing true, --batch.prompts 2; no checkpoint was saved yet,"
            " go on with: rlkern train --resume .*run --batch.micro_batches 2$",
        ),
        (
            "rollout.sampler.next_logprob",
            "collect.py",
            RuntimeError(NO_MEMORY),
            "while sampling; what helps, in this order: --batch.prompts 2, a smaller"
            " --rollout.max_new_tokens, --dtype bfloat16; .* --resume .*run$",
        ),
        (
            "rollout.sampler.next_logprob",
            "evaluate.py",
            MemoryError(),
            "while evaluating; what helps, in this order: --eval.batch 128, .*--eval.batch 128$",
        ),
    ],
    ids=["learning", "sampling", "evaluating"],
)
def test_no_memory_ends_in_the_keys_that_help(
    tmp_path, monkeypatch, place, caller, error, sentence
):
    module, _, name = f"rlkern.trainer.{place}".partition(".Updater.")
    owner = importlib.import_module(module if name else module.rpartition(".")[0])
    owner, name = (owner.Updater, name) if name else (owner, module.rpartition(".")[2])
    real = getattr(owner, name)

    def full(*given, **named):
        if any(frame.filename.endswith(caller) for frame in traceback.extract_stack()):
            raise error
        return real(*given, **named)

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(UserError, match=f"^out of memory {sentence}"):
        train(small(tmp_path, name="run", steps=1, sft=None, eval__items=4, output__log=[]))


def test_the_time_limit_is_said_with_how_to_go_on(tmp_path):
    config = small(tmp_path, name="late", sft=None, steps=50, max_seconds=0.01)
    assert re.search(
        r"max_seconds ended the run after step \d+ of 50; .* rlkern train --resume .*late",
        printed(config),
    )
    done = read_metrics(tmp_path / "runs" / "late")[-1]["step"]
    summary = json.loads((tmp_path / "runs" / "late" / "summary.json").read_text())
    assert summary["steps"] == done < 50


def test_a_folder_that_only_holds_a_lock_is_free(tmp_path):
    (tmp_path / "runs" / "early").mkdir(parents=True)
    (tmp_path / "runs" / "early" / ".lock").touch()
    train(small(tmp_path, name="early", sft=None, steps=1))
    assert (tmp_path / "runs" / "early" / "summary.json").is_file()


def test_a_run_begins_with_nothing_done():
    begun = dataclasses.asdict(Progress())
    assert begun.pop("before") == begun.pop("data") == {}
    assert set(begun.values()) == {0}


def test_the_seconds_before_a_resume_count():
    assert 7.0 <= Clock(7.0).seconds() < 1007.0
