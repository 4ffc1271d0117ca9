# SPDX-License-Identifier: Apache-2.0
"""Whole runs: what they write, what a kill or a full disk leaves, and that a resume is exact."""

import errno
import json
import os
import signal
import time

import pytest
import torch
import yaml
from trainer_helpers import (
    SMALL,
    begun,
    changed,
    compiled,  # noqa: F401
    flags,
    loaded,
    small,
    start,
    without_times,
)
from trainer_rewards import HOLD

from rlkern import cli
from rlkern.runs import files
from rlkern.runs.folder import all_checkpoints, hold
from rlkern.runs.logs import METRICS, read_metrics
from rlkern.trainer import UserError, train
from rlkern.trainer.run import checkpoint
from rlkern.trainer.settings import Layer, dump, of, resolve
from rlkern.trainer.show import report

pytestmark = pytest.mark.usefixtures("compiled")


def test_a_run_writes_all_its_files_and_says_what_it_did(tmp_path):
    config = small(tmp_path, loss__compare="eager", output__sample_every=2)
    summary = train(config)
    run = tmp_path / "runs" / "grpo-tiny-addition"
    written = {path.name for path in run.iterdir()}
    expected = {
        "config.yaml",
        "metrics.jsonl",
        "curves.png",
        "summary.json",
        "tensorboard",
        "completions.parquet",
        ".lock",
    }
    kept = {name for name in written if name.startswith("best-")}
    assert len(kept) == 1 and written == expected | kept | {"best", "checkpoint-4", "checkpoint-6"}
    assert json.loads((run / "summary.json").read_text()) == summary
    for key in ("eval/accuracy_before", "eval/accuracy_after", "wall_seconds", "backend"):
        assert key in summary
    assert summary["compare"]["compare/grad_norm_difference"] < 1e-4
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    names = set(lines[-1])
    known = (
        "reward reward_std frac_reward_zero_std rewards/even_digits/mean kl entropy loss grad_norm"
    )
    known += " learning_rate num_tokens step_time completions/mean_length clip_ratio/low_mean"
    known += " clip_ratio/high_mean time/rollout time/score time/loss time/step eval/accuracy"
    assert set(known.split()) <= names
    assert [line["step"] for line in lines if "eval/accuracy" in line] == [0, 3, 6]


def test_several_updates_with_a_kl_learn_from_old_and_reference_logprobs(tmp_path):
    several = {"batch__epochs": 3, "batch__micro_batches": 2}
    config = small(tmp_path, **several, coefficients__kl_coef=0.1, optimizer__lr=3e-3)
    train(config)
    lines = read_metrics(tmp_path / "runs" / "grpo-tiny-addition")
    assert lines[-1]["kl"] > 0
    assert lines[-1]["time/score"] > 0
    assert lines[-1]["sampling/sampling_logp_difference/max"] < 1e-4
    assert any(line["ratio/max"] > 1.01 for line in lines[1:])


@pytest.mark.parametrize("algorithm", ["reinforce"])
def test_other_algorithms_run_by_name_alone(tmp_path, algorithm):
    summary = train(small(tmp_path, algorithm=algorithm, steps=2))
    assert summary["algorithm"] == algorithm


def test_the_same_seed_gives_the_same_curve(tmp_path):
    curves = []
    for name in ("a", "b"):
        train(small(tmp_path, name=name, steps=3))
        curves.append(without_times(read_metrics(tmp_path / "runs" / name)))
    assert curves[0] == curves[1]
    train(small(tmp_path, name="c", steps=3, seed=1))
    assert without_times(read_metrics(tmp_path / "runs" / "c")) != curves[0]


def test_a_run_killed_and_resumed_has_the_curve_of_an_uninterrupted_run(tmp_path):
    several = {"batch__epochs": 2, "batch__micro_batches": 2}
    whole = small(tmp_path, name="whole", **several, coefficients__kl_coef=0.05)
    killed = changed(whole, name="killed")
    run = tmp_path / "runs" / "killed"
    child, _ = start_and_hold(killed, run, 5, tmp_path)
    child.kill()
    child.wait()
    assert child.returncode == -signal.SIGKILL
    assert len(read_metrics(run)) == 5
    train(killed, resume=True)
    train(whole)
    lines = read_metrics(tmp_path / "runs" / "whole")
    assert without_times(read_metrics(run)) == without_times(lines)
    assert len({line["reward"] for line in lines[1:]}) == 6, "the curve must not be flat"
    weights = "checkpoint-6/model.safetensors"
    whole_weights = (tmp_path / "runs" / "whole" / weights).read_bytes()
    assert (run / weights).read_bytes() == whole_weights


@pytest.mark.parametrize("changes", [{"optimizer__train_layers": 1}, {"lora__rank": 4}], ids=str)
def test_frozen_weights_go_on_to_the_last_bit(tmp_path, changes):
    # The correction compares what sampled with what scored, whose rounding is not the same.
    whole = small(tmp_path, name="whole", correction__kind="truncate", **changes)
    train(whole)
    train(changed(whole, name="cut", steps=3))
    train(changed(whole, name="cut"), resume=True)
    curves = [without_times(read_metrics(tmp_path / "runs" / n)) for n in ("whole", "cut")]
    assert curves[0][4:] == [line for line in curves[1] if line["step"] > 3]


def start_and_hold(config, run, count, cwd):
    """Returns the process of a run that waits, once it has written so many lines, and its hold."""
    released = cwd / "released"
    hold = f"{run / METRICS}:{count}:{released}"
    child = start("train", *flags(config), cwd=cwd, **{HOLD: hold})
    while len(read_metrics(run)) < count:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.005)
    return child, released


def test_ctrl_c_saves_and_the_resumed_run_ends_like_an_uninterrupted_one(tmp_path, capsys):
    config = small(tmp_path, name="asked", steps=30, output__save_every=0, eval__every=0)
    run = tmp_path / "runs" / "asked"
    child, released = start_and_hold(config, run, 4, tmp_path)
    child.send_signal(signal.SIGINT)
    released.touch()
    _, errors = child.communicate()
    assert child.returncode == 130
    assert f"rlkern train --resume {run}" in errors and "Traceback" not in errors
    (saved,) = (p for p in all_checkpoints(run) if p.name != "checkpoint-0")
    assert int(saved.name.split("-")[1]) == read_metrics(run)[-1]["step"]
    assert cli.main(["train", "--resume", str(run)]) == 0, capsys.readouterr().err
    train(changed(config, name="whole"))
    whole = without_times(read_metrics(tmp_path / "runs" / "whole"))
    assert without_times(read_metrics(run)) == whole


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["save_file", "json.dumps", "publish.sync"])
def test_a_full_disk_leaves_the_last_checkpoint_whole_and_nothing_else(
    tmp_path, monkeypatch, place
):
    config = small(tmp_path, name="run", output__save_every=2)
    real = checkpoint.save

    def save(run, parts, updater):
        if parts.progress.step == 4:
            target = {
                "save_file": (checkpoint, "save_file"),
                "json.dumps": (checkpoint.json, "dumps"),
                "publish.sync": (files, "sync"),
            }[place]
            monkeypatch.setattr(*target, full_disk)
        return real(run, parts, updater)

    monkeypatch.setattr("rlkern.trainer.loop.checkpoint.save", save)
    with pytest.raises(UserError, match="No space left on device.*checkpoint-2 is whole.*--resume"):
        train(config)
    monkeypatch.undo()
    run = tmp_path / "runs" / "run"
    assert [p.name for p in all_checkpoints(run)] == ["checkpoint-0", "checkpoint-2"]
    assert not list(run.glob(".partial*"))
    train(config, resume=True)
    train(changed(config, name="whole"))
    whole = without_times(read_metrics(tmp_path / "runs" / "whole"))
    assert without_times(read_metrics(run)) == whole


def test_a_checkpoint_of_another_run_or_model_is_refused(tmp_path):
    config = small(tmp_path, name="run", steps=2)
    train(config)
    run = tmp_path / "runs" / "run"
    other = changed(config, optimizer__lr=0.5)
    with pytest.raises(UserError, match="its optimizer.lr is 0.001, this run has 0.5"):
        checkpoint.read_progress(run / "checkpoint-2", other)
    with pytest.raises(UserError, match="was started with optimizer.lr 0.001, not 0.5"):
        train(other, resume=True)
    parts, _, updater = begun(changed(config, sft=None), run)
    parts.policy.model.get_decoder().layers[0].mlp.up_proj.weight.data = torch.zeros(3, 3)
    with pytest.raises(UserError, match="optimizer of another model"):
        checkpoint.restore(run / "checkpoint-2", parts, updater)


def test_a_checkpoint_holds_no_pickle(tmp_path):
    train(small(tmp_path, name="run", steps=2))
    folder = tmp_path / "runs" / "run" / "checkpoint-2"
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds <= {".json", ".safetensors", ".jinja"}


def test_an_existing_run_is_never_overwritten(tmp_path):
    config = small(tmp_path, name="run", steps=1)
    train(config)
    run = tmp_path / "runs" / "run"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        train(changed(config, optimizer__lr=0.5))
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}


def test_a_run_in_use_is_not_entered_by_a_second_process(tmp_path):
    config = small(tmp_path, name="run", steps=1, sft=None)
    train(config)
    run = tmp_path / "runs" / "run"
    partial = run / ".partial-checkpoint-9"
    partial.mkdir()
    with hold(run):
        assert not partial.exists(), "a killed run's half-written folder goes"
        partial.mkdir()
        before = (run / "config.yaml").read_bytes()
        with pytest.raises(UserError, match="in use by another process"):
            train(changed(config, steps=9), resume=True)
        assert partial.exists(), "that of a running one stays"
        assert (run / "config.yaml").read_bytes() == before


def test_a_run_cannot_go_back(tmp_path):
    config = small(tmp_path, name="run", steps=2, sft=None)
    train(config)
    with pytest.raises(UserError, match="steps must be at least the 2 that .* has done, got 1"):
        train(changed(config, steps=1), resume=True)
    train(changed(config, max_seconds=1e-3, steps=3), resume=True)


def test_a_run_without_a_name_takes_a_fresh_number(tmp_path):
    names = [train(small(tmp_path, steps=1, sft=None))["name"] for _ in range(3)]
    assert names == ["grpo-tiny-addition", "grpo-tiny-addition-2", "grpo-tiny-addition-3"]


def test_rewards_that_never_differ_stop_the_run_with_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "constant_reward.py").write_text(
        "def constant(prompts, completions):\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = {"reward__functions": "constant_reward:constant", "reward__degenerate_limit": 2}
    config = small(tmp_path, **reward, sft=None)
    with pytest.raises(UserError, match="first 2 rollouts .* nothing to learn"):
        train(config)
    finished = train(changed(config, name="free", reward__degenerate_limit=0, steps=3))
    assert read_metrics(tmp_path / "runs" / finished["name"])[-1]["frac_reward_zero_std"] == 1


def test_what_teaches_nothing_is_said_the_first_time_and_every_fifty_times(tmp_path):
    parts, said = loaded(small(tmp_path, reward__degenerate_limit=0)), []
    for step in range(1, 121):
        parts.progress.step, before = step, len(said)
        report.note(parts, [], True, 0.0, said.append)
        assert (len(said) > before) == (step in (1, 50, 100)), step
    assert "(100 such rollouts so far)" in said[-1]


def test_config_yaml_of_a_run_gives_the_same_run_again(tmp_path):
    config = small(tmp_path, name="run", steps=1, sft=None)
    train(config)
    saved = yaml.safe_load((tmp_path / "runs" / "run" / "config.yaml").read_text())
    assert saved == dump(config)
    assert resolve(Layer("config.yaml", saved)) == config


def test_keys_left_to_the_model_are_written_down_with_their_values(tmp_path):
    given = {key: x for key, x in SMALL.items() if key not in ("sft.steps", "optimizer.lr")}
    place = {"output.dir": str(tmp_path / "runs"), "name": "run"}
    train(of(**{**given, **place, "steps": 1, "sft.target": 0.001}))
    saved = yaml.safe_load((tmp_path / "runs" / "run" / "config.yaml").read_text())
    assert (saved["optimizer"]["lr"], saved["sft"]["steps"]) == (5e-4, 600)
    assert of(model="elsewhere").optimizer.lr == 1e-5
