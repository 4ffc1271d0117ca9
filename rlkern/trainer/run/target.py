# SPDX-License-Identifier: Apache-2.0
"""What `rlkern eval` is pointed at: a run, one of its checkpoints, or a model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from rlkern.trainer.config import Config, from_dict, load_yaml
from rlkern.trainer.errors import UserError
from rlkern.trainer.pipeline import PLAN
from rlkern.trainer.run import best, rundir
from rlkern.trainer.run.checkpoint import all_checkpoints, name_of
from rlkern.trainer.settings import find_algorithm

_STATE = "trainer.json"


@dataclass(frozen=True)
class Target:
    """A model to evaluate.

    model     a folder in Hugging Face format, or a name that `--model` takes
    config    the settings of its run; None for a model that is of no run
    label     what a person reads: the run and the step
    """

    model: str
    config: Config | None
    label: str


def find_target(name: str, checkpoint: str) -> Target:
    """Returns what `name` is; checkpoint is best, newest or a step, and chooses within a run."""
    path = Path(name)
    if (path / PLAN).is_file():
        stages = ", ".join(str(stage.parent) for stage in sorted(path.glob(f"*/{rundir.CONFIG}")))
        raise UserError(f"{path} holds a pipeline: evaluate one of its stages, {stages}")
    if (path / rundir.CONFIG).is_file():
        return _of_run(path, checkpoint)
    if (path / best.NOTE).is_file():
        return _of_run(path.resolve().parent, best.BEST)
    if (path / _STATE).is_file():
        return Target(name, _judge(path, _saved_config(path)), f"{path.parent.name}, {path.name}")
    return Target(name, None, name)


def _of_run(run: Path, checkpoint: str) -> Target:
    config = _judge(run, load_yaml(run / rundir.CONFIG))
    folder = _chosen(run, checkpoint)
    noted = best.read(run) if folder.name == best.BEST else None
    step = f" (step {noted['step']})" if noted else ""
    return Target(str(folder), config, f"{run.name}, {folder.name}{step}")


def _chosen(run: Path, checkpoint: str) -> Path:
    """Returns the folder of a run's checkpoint; the newest where the best was not kept."""
    saved = all_checkpoints(run)
    if checkpoint == best.BEST and best.read(run):
        return run / best.BEST
    if not saved:
        raise UserError(f"{run} holds no checkpoint yet: let it run until it has saved one")
    if checkpoint in (best.BEST, "newest"):
        return saved[-1]
    wanted = run / name_of(int(checkpoint)) if checkpoint.isdecimal() else None
    if wanted not in saved:
        kept = ", ".join(folder.name.split("-")[1] for folder in saved)
        raise UserError(
            f"checkpoint must be best, newest or a step that {run} kept ({kept}),"
            f" got {checkpoint!r}"
        )
    assert wanted is not None
    return wanted


def _saved_config(folder: Path) -> Config:
    try:
        values = json.loads((folder / _STATE).read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / _STATE} cannot be read: {error}") from error
    return from_dict(values, str(folder))


def _judge(place: Path, config: Config) -> Config:
    """Returns the settings; raises one sentence for a run whose model answers nothing."""
    trained = find_algorithm(config.algorithm).trains
    if trained != "policy":
        raise UserError(
            f"{place} trained a {trained.replace('_', ' ')}, which scores answers and gives none:"
            f" its held-out accuracy is in metrics.jsonl and summary.json"
        )
    return config


def settings_for(target: Target, changes: dict) -> Config:
    """Returns the settings of an evaluation: those of the target's run, and what is asked over it.

    A run can be asked for the items it held out, not for more: those it may have been trained on.
    """
    own = target.config
    if own is None and "task" not in changes:
        raise UserError(
            f"{target.model} is no run directory, so --task must say what it is asked,"
            " for example --task addition"
        )
    config = dataclasses.replace(own or Config(model=target.model), **changes)
    if own is not None and config.task == own.task and config.eval_items > own.eval_items:
        raise UserError(
            f"items must be at most the {own.eval_items} that {target.label} held out,"
            f" got {config.eval_items}: it may have been trained on others"
        )
    return config
