# SPDX-License-Identifier: Apache-2.0
"""The best checkpoint: which one it is, and that a kill never leaves half of one."""

import os

import pytest
from trainer_helpers import compiled, small  # noqa: F401

from rlkern.runs import best
from rlkern.runs.files import remove_partial
from rlkern.trainer import UserError, loop, train


def save_text(text):
    """Returns what writes a model that is one file."""
    return lambda folder: (folder / "model").write_text(text)


def keep(run, step, accuracy, text=None):
    return best.keep(run, step, {"eval/accuracy": accuracy}, save_text(text or str(step)))


def content(run):
    return (run / "best" / "model").read_text(), best.read(run)["step"]


def test_only_a_better_accuracy_replaces_the_best(tmp_path):
    assert best.read(tmp_path) is None
    told = [keep(tmp_path, step, a) for step, a in enumerate([0.2, 0.5, 0.4, 0.5, float("nan")])]
    assert told == [True, True, False, False, False]
    assert content(tmp_path) == ("1", 1)
    assert best.read(tmp_path)["eval/accuracy"] == 0.5
    assert keep(tmp_path, 9, 0.6) and content(tmp_path) == ("9", 9)
    assert {p.name for p in tmp_path.iterdir()} == {"best", "best-9"}


@pytest.mark.parametrize("place", ["sync", "symlink_to", "replace", "rename"])
def test_a_kill_at_any_moment_leaves_the_old_best_or_the_new_one(tmp_path, monkeypatch, place):
    keep(tmp_path, 1, 0.2)

    def kill(*_, **__):
        raise KeyboardInterrupt

    home = {
        "sync": "rlkern.runs.files.sync",
        "replace": "rlkern.runs.best.os.replace",
    }
    with monkeypatch.context() as patch:
        patch.setattr(home.get(place, f"pathlib.Path.{place}"), kill)
        with pytest.raises(KeyboardInterrupt):
            keep(tmp_path, 2, 0.3)
    assert content(tmp_path) == ("1", 1)
    # The resumed run comes to the same step again.
    remove_partial(tmp_path)
    assert keep(tmp_path, 2, 0.3, "again")
    assert content(tmp_path) == ("again", 2)
    assert {p.name for p in tmp_path.iterdir()} == {"best", "best-2"}


def test_a_run_that_moved_keeps_its_best(tmp_path):
    (tmp_path / "a").mkdir()
    keep(tmp_path / "a", 1, 0.2)
    os.rename(tmp_path / "a", tmp_path / "b")
    assert content(tmp_path / "b") == ("1", 1)


def test_a_note_that_cannot_be_read_is_one_sentence(tmp_path):
    keep(tmp_path, 1, 0.2)
    (tmp_path / "best" / "best.json").write_text("{}")
    with pytest.raises(UserError, match=r"best.json cannot be read: .*; delete .*best"):
        keep(tmp_path, 2, 0.3)


@pytest.mark.usefixtures("compiled")
def test_a_run_keeps_the_checkpoint_of_its_best_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr("rlkern.trainer.online.learner.task_accuracies", falling())
    short = {"steps": 3, "eval__every": 1, "output__keep_checkpoints": 1}
    config = small(tmp_path, name="run", **short, sft=None)
    train(config)
    run = tmp_path / "runs" / "run"
    assert best.read(run) == {"eval/accuracy": 0.9, "step": 2}
    assert (run / "best" / "model.safetensors").is_file()
    third = (run / "checkpoint-3" / "model.safetensors").read_bytes()
    assert (run / "best" / "model.safetensors").read_bytes() != third
    train(small(tmp_path, name="none", steps=1, sft=None, eval__keep_best=False))
    assert not (tmp_path / "runs" / "none" / "best").exists()


def falling():
    """Returns an evaluation that is best after step 2; it is also asked before step 1."""
    values = iter([0.1, 0.5, 0.9, 0.3])
    return lambda *_, **__: {"eval/accuracy": (value := next(values, 0.0)), "eval/other": value}


@pytest.mark.usefixtures("compiled")
def test_a_resumed_run_knows_its_best(tmp_path, monkeypatch):
    monkeypatch.setattr("rlkern.trainer.online.learner.task_accuracies", falling())
    config = small(tmp_path, name="run", steps=4, eval__every=1, sft=None, output__save_every=1)
    real = loop._save

    def stop(run, desk):
        real(run, desk)
        if run.parts.progress.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", stop)
        with pytest.raises(UserError, match="stopped"):
            train(config)
    assert best.read(tmp_path / "runs" / "run")["step"] == 2
    train(config, resume=True)
    assert best.read(tmp_path / "runs" / "run") == {"eval/accuracy": 0.9, "step": 2}
