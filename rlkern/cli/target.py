# SPDX-License-Identifier: Apache-2.0
"""What a command is pointed at: a run, one of its checkpoints, or a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlkern.runs import best
from rlkern.runs.errors import UserError
from rlkern.runs.folder import CONFIG, is_run
from rlkern.trainer.models.load import check_model_name
from rlkern.trainer.run.checkpoint import STATE, read_settings
from rlkern.trainer.settings import Layer, Settings, dump, resolve
from rlkern.trainer.settings.document import saved


@dataclass(frozen=True)
class Target:
    """A model.

    model     a folder in Hugging Face format, or a name that `--model` takes
    settings  the settings of its run; None for a model that belongs to no run
    label     what a person reads: the run and the step
    """

    model: str
    settings: Settings | None
    label: str


# Raises UserError for a run, which a place names, that a command can do nothing with.
Check = Callable[[Path, Settings], None]


def find_target(name: str, checkpoint: str | None, check: Check) -> Target:
    """Returns what `name` is; checkpoint is best (if None), newest or a step, and chooses within a
    run. Of a run `check` is asked before its checkpoints are looked at. Raises UserError for the
    checkpoint of anything else."""
    path = Path(name)
    if is_run(path):
        return _of_run(path, checkpoint or best.BEST, check)
    if checkpoint is not None:
        raise UserError(
            f"checkpoint chooses within a run directory, and {name} is none: leave it out, got"
            f" {checkpoint!r}"
        )
    if (path / best.NOTE).is_file():
        return _of_run(path.resolve().parent, best.BEST, check)
    if (path / STATE).is_file():
        settings = read_settings(path)[1]
        check(path, settings)
        return Target(name, settings, f"{path.resolve().parent.name}, {path.name}")
    return Target(name, None, name)


def _of_run(run: Path, checkpoint: str, check: Check) -> Target:
    settings = saved(run / CONFIG)
    check(run, settings)
    folder = best.chosen(run, checkpoint)
    return Target(str(folder), settings, f"{run.resolve().name}, {best.label(folder)}")


def check_writes(place: Path, settings: Settings) -> None:
    """Raises UserError for a run whose model answers nothing."""
    trained = settings.declared.trains
    if trained != "policy":
        raise UserError(
            f"{place} trained a {trained.replace('_', ' ')}, which scores answers but writes none:"
            f" rlkern eval {place} measures it on held-out pairs"
        )


# What an evaluation reads of the settings of a run.
_KEYS = ("task", "data", "reward", "seed", "device", "dtype", "threads", "rollout", "eval")
_REWARD = ("functions", "weights")


def settings_for(target: Target, changes: dict) -> Settings:
    """Returns the settings of an evaluation: those of the target's run, with changes over them.

    A run can be asked for the items it held out, not for more: it may have been trained on those.
    """
    own = target.settings
    if own is None and "task" not in changes:
        check_model_name(target.model)
        raise UserError(
            f"{target.model} is no run directory, so --task must say what it is asked,"
            " for example --task addition"
        )
    kept = {} if own is None else {k: v for k, v in dump(own).items() if k in _KEYS}
    kept.get("rollout", {}).pop("engine", None)  # evaluation stays with the model
    if own is not None and changes.get("task", own.asked) != own.asked:
        kept.pop("data", None)
    # A file is measured by the run's own reward, a task by its verifier.
    of_file = "train" in kept.get("data", {}) or (own is not None and own.has_own_task)
    own_reward = kept.pop("reward", {}) if own is not None else {}
    if of_file:
        kept["reward"] = {k: v for k, v in own_reward.items() if k in _REWARD}
    # The algorithm reads every key of an evaluation, whatever trained the model.
    base = {"model": target.model, "algorithm": "reinforce", "sft": None}
    settings = resolve(Layer("", base), Layer(target.label, kept), Layer("flags", changes))
    if own is not None and settings.asked == own.asked and settings.eval.items > own.eval.items:
        raise UserError(
            f"items must be at most the {own.eval.items} that {target.label} held out,"
            f" got {settings.eval.items}: it may have been trained on others"
        )
    return settings
