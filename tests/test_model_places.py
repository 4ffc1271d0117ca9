# SPDX-License-Identifier: Apache-2.0
"""Where a model is: a folder that may be broken, a run, the local cache of the hub."""

import shutil
from pathlib import Path

import pytest
import torch
from look_helpers import refused, said
from trainer_helpers import small, tiny_policy

import rlkern
from rlkern import cli
from rlkern.runs import best
from rlkern.trainer import UserError, train
from rlkern.trainer.models.load import check_model_name, make_policy
from rlkern.trainer.reward.model import make_scorer
from rlkern.trainer.run.rundir import automatic_name
from rlkern.trainer.settings.places import anchored, taken

CPU = {"alphabet": "", "seed": 0, "device": torch.device("cpu"), "dtype": "float32"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the directory of a run with a best checkpoint, which is not its newest."""
    folder = tmp_path_factory.mktemp("places")
    with rlkern.use_backend("eager"):
        train(small(folder, name="first", steps=2, eval__every=0))
    found = folder / "runs" / "first"
    assert best.keep(
        found,
        0,
        {"eval/accuracy": 2.0},
        lambda to: shutil.copytree(found / "checkpoint-0", to, dirs_exist_ok=True),
    )
    return found


BROKEN = {
    "tokenizer.json": (None, "must hold a tokenizer next to its weights"),
    "model.safetensors": (20000, "has a file of weights that is cut off or broken, copy it again"),
    "config.json": (20, "config.json' is not a valid JSON file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_is_broken_is_one_sentence_before_anything_is_written(
    capsys, monkeypatch, tmp_path, name
):
    size, sentence = BROKEN[name]
    tiny_policy().save(tmp_path / "model")
    place = tmp_path / "model" / name
    if size is None:
        place.unlink()
    else:
        place.write_bytes(place.read_bytes()[:size])
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", "model", "1+1="]) == 2
    error = capsys.readouterr().err
    assert "rlkern sample: model 'model' " in error and sentence in error
    keys = ["--model", "model", "--task", "addition", "--sft", "null", "--device", "cpu"]
    assert cli.main(["train", *keys]) == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def in_cache(monkeypatch, root, name):
    """Returns the folder of a hub's id in a local cache, made as the hub's library makes it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    place = root / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    return place / "snapshots" / "abc"


def test_a_hubs_id_is_read_out_of_the_local_cache(monkeypatch, tmp_path):
    policy = tiny_policy(seed=3)
    policy.save(in_cache(monkeypatch, tmp_path, "someone/small"))
    check_model_name("someone/small")
    found = make_policy("someone/small", **CPU)
    for mine, its in zip(policy.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    hint = "nothing is downloaded without `hf download someone/other`"
    with pytest.raises(UserError, match=hint):
        check_model_name("someone/other")


def test_a_reward_model_is_read_out_of_the_local_cache(capsys, monkeypatch, tmp_path):
    make_scorer(tiny_policy()).save(in_cache(monkeypatch, tmp_path, "someone/judge"))
    assert "reward_model on 2 items" in said(
        capsys, "reward", "someone/judge", "--task", "addition", "--items", 2
    )


def test_a_run_stands_for_its_best_checkpoint_as_a_model_and_as_a_teacher(tmp_path, run):
    given = small(
        tmp_path,
        algorithm="on_policy_distillation",
        model=str(run),
        teacher=str(run),
        sft=None,
        reward__functions="task",
    )
    found = anchored(given)
    assert found.model == found.teacher == str(run / "best")
    assert taken(given, found) == [
        f"model {run}: best (step 0)",
        f"teacher {run}: best (step 0)",
    ]
    assert taken(found, anchored(found)) == []
    assert automatic_name(found) == "on_policy_distillation-first-addition"


def test_a_run_without_a_best_stands_for_its_newest_checkpoint(tmp_path, run):
    other = tmp_path / "other"
    shutil.copytree(run, other, symlinks=True)
    (other / "best").unlink()
    given = small(tmp_path, model=str(other), sft=None)
    assert anchored(given).model == str(other / "checkpoint-2")
    shutil.rmtree(other / "checkpoint-2")
    shutil.rmtree(other / "checkpoint-0")
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        anchored(given)


def test_a_run_that_starts_from_a_run_says_which_checkpoint_it_took(capsys, monkeypatch, run):
    monkeypatch.chdir(run.parent)
    keys = ["--task", "addition", "--sft", "null", "--show", "1", "--device", "cpu"]
    shown = said(capsys, "train", "--model", "first", *keys)
    assert shown.startswith("model first: best (step 0)\n")


def test_the_run_of_a_reward_model_is_a_reward(capsys, tmp_path, run):
    with rlkern.use_backend("eager"):
        train(
            small(
                tmp_path,
                algorithm="reward_model",
                name="judge",
                model=str(run),
                sft=None,
                steps=1,
                pairs__items=20,
                eval__every=0,
            )
        )
    judge = tmp_path / "runs" / "judge"
    assert "reward_model on 2 items" in said(
        capsys, "reward", judge, "--task", "addition", "--items", 2
    )
    assert "must hold a …ForSequenceClassification" in refused(
        capsys, "reward", run, "--task", "addition"
    )


def test_a_pipeline_is_no_model(tmp_path):
    folder = tmp_path / "stages"
    (folder / "1-sft").mkdir(parents=True)
    (folder / "pipeline.yaml").write_text("")
    (folder / "1-sft" / "config.yaml").write_text("")
    with pytest.raises(UserError, match="name one of its stages, .*1-sft"):
        anchored(small(tmp_path, model=str(folder), sft=None))


def test_adapters_whose_model_moved_say_where_its_place_is_written(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone"}')
    sentence = (
        rf"whose model is not where base_model_name_or_path of {folder}/adapter_config.json says:"
        " there is no model '/gone'"
    )
    with pytest.raises(UserError, match=sentence):
        check_model_name(str(folder))
    with pytest.raises(UserError, match=sentence):
        make_policy(str(folder), **CPU)


def test_every_place_of_a_model_is_found_from_elsewhere(monkeypatch, tmp_path, run):
    monkeypatch.chdir(run.parent)
    given = small(tmp_path, model="first", sft=None)
    monkeypatch.chdir(run.parent)
    found = anchored(given)
    assert Path(found.model).is_absolute() and found.model == str(run / "best")
