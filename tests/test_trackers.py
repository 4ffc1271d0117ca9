# SPDX-License-Identifier: Apache-2.0
"""Trackers: each is told what metrics.jsonl is told, through the calls that it documents."""

import importlib
import json
import sys

import pytest
from look_helpers import refused
from trainer_helpers import changed, compiled, small  # noqa: F401

from rlkern.runs.logs import read_metrics
from rlkern.runs.trackers import TRACKERS
from rlkern.trainer import UserError, train
from rlkern.trainer.settings import Settings

pytestmark = pytest.mark.usefixtures("compiled")

# Stand-ins with the documented signatures: anything else is a TypeError. `calls` is what they got.
COMMON = """
calls = []
class Run:
    id = "abc"
    def log(self, metrics, *, step=None):
        calls.append(("log", dict(metrics), step))
    def finish(self):
        calls.append(("finish",))
"""
STANDS_IN = {
    "trackio": COMMON
    + """
def init(project, name=None, *, space_id=None, dataset_id=None, config=None, resume="never"):
    assert resume in ("never", "allow", "must")
    calls.append(("init", project, name, config, space_id, None))
    return Run()
""",
    "wandb": COMMON
    + """
def init(entity=None, project=None, dir=None, id=None, name=None, config=None, mode=None,
         resume=None):
    assert mode in ("online", "offline", "disabled")
    calls.append(("init", project, name, config, mode, id))
    return Run()
""",
    "mlflow": """
calls = []
class Info:
    run_id = "abc"
class Active:
    info = Info()
def set_experiment(experiment_name=None):
    calls.append(("experiment", experiment_name))
def start_run(run_id=None, experiment_id=None, run_name=None):
    calls.append(("init", calls[-1][1], run_name, params, None, run_id))
    return Active()
params = {}
def log_params(found):
    assert all(isinstance(value, str) for value in found.values())
    params.update(found)
def log_metrics(metrics, step=None):
    import re
    assert all(re.fullmatch(r"[\\w\\-. :/]+", key) for key in metrics)
    calls.append(("log", dict(metrics), step))
def end_run(status="FINISHED"):
    calls.append(("finish",))
""",
}


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Returns the stand-ins of all trackers that are not installed, by name."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name, text in STANDS_IN.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield {name: importlib.import_module(name) for name in STANDS_IN}
    for name in STANDS_IN:
        sys.modules.pop(name, None)


def test_every_tracker_gets_what_is_logged_and_goes_on_after_a_resume(tmp_path, stand_ins):
    config = small(
        tmp_path,
        name="run",
        output__log=list(STANDS_IN),
        steps=2,
        sft=None,
        eval__items=4,
        reward__functions="trainer_rewards:even_digits",
    )
    train(config)
    run = tmp_path / "runs" / "run"
    assert not (run / "tensorboard").exists()
    for name, module in stand_ins.items():
        calls = [call for call in module.calls if call[0] != "experiment"]
        (kind, project, label, settings, where, known), *logged, last = calls
        assert (kind, project, label, known) == ("init", "rlkern", "run", None)
        assert str(settings["optimizer.lr"]) == "0.001" and where == {"wandb": "offline"}.get(name)
        assert [call[2] for call in logged] == [0, 1, 2] and last == ("finish",)
        for (_, values, _), line in zip(logged, read_metrics(run), strict=True):
            finite = {k: v for k, v in line.items() if v is not None and k != "step"}
            at = {"mlflow": "_at_"}.get(name, "@")
            assert values == {key.replace("@", at): value for key, value in finite.items()}
        module.calls.clear()
    train(changed(config, steps=3), resume=True)
    for name, module in stand_ins.items():
        begun, *logged, _ = [call for call in module.calls if call[0] != "experiment"]
        assert begun[5] == {"trackio": None}.get(name, "abc")
        assert [call[2] for call in logged] == [3]


def test_wandb_leaves_the_machine_only_where_its_own_variable_says_so(
    tmp_path, stand_ins, monkeypatch
):
    from rlkern.runs.trackers import Start

    monkeypatch.setenv("WANDB_MODE", "online")
    TRACKERS["wandb"](Start(tmp_path, -1, {}))
    assert stand_ins["wandb"].calls[0][4] == "online"


@pytest.mark.parametrize("name", list(STANDS_IN))
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_written(
    capsys, tmp_path, monkeypatch, name
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda word, *more: None if word == name else find(word, *more)
    )
    out = tmp_path / "runs"
    sentence = refused(capsys, "train", "--log", f"tensorboard,{name}", "--output.dir", out)
    assert f"needs the package {name}, which is not installed: pip install {name}" in sentence
    assert not out.exists()


def test_a_tracker_that_cannot_begin_is_named(tmp_path, stand_ins, monkeypatch):
    def init(**_):
        raise RuntimeError("no room\nat all")

    monkeypatch.setattr(stand_ins["wandb"], "init", init)
    config = small(tmp_path, output__log=["trackio", "wandb"], sft=None, eval__items=4)
    with pytest.raises(UserError, match="output.log wandb cannot begin: RuntimeError: no room$"):
        train(config)
    assert stand_ins["trackio"].calls[-1] == ("finish",)


def test_names_of_trackers_are_those_that_there_are(capsys, tmp_path):
    kinds = Settings.model_fields["output"].annotation.model_fields["log"].annotation
    assert str(tuple(TRACKERS)).strip("()") in str(kinds).replace("[", "(").replace("]", ")")
    sentence = refused(capsys, "train", "--log", "wandbb", "--output.dir", tmp_path / "runs")
    assert "output.log must be names among tensorboard, trackio, wandb, mlflow" in sentence
    assert sentence.endswith("did you mean wandb\n")


def test_no_tracker_at_all_leaves_the_metrics(tmp_path):
    train(small(tmp_path, name="run", output__log=[], steps=1, sft=None, eval__items=4))
    run = tmp_path / "runs" / "run"
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 1
    assert not (run / "tensorboard").exists()
