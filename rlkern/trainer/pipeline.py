# SPDX-License-Identifier: Apache-2.0
"""Runs one after the other, each from what the ones before it made: SFT, reward model, PPO, …

A pipeline is a YAML file whose `stages` are laid one by one over its other keys, of which each
stage takes those that it reads. Stage n is an ordinary run in the folder <n>-<name> of the
pipeline's own; its name is `name`, or its algorithm's. It starts from the newest policy of the
stages before it unless it says `model` itself. In `model`, `teacher` and `reward` the word
stage:<name> means the last checkpoint of that stage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlkern.algorithms import declarations
from rlkern.runs.errors import UserError
from rlkern.runs.files import remove_partial, write_text
from rlkern.runs.folder import CONFIG, PLAN, all_checkpoints, check_name
from rlkern.runs.settings.yaml_file import read, to_yaml
from rlkern.trainer import preflight
from rlkern.trainer.loop import SUMMARY, train
from rlkern.trainer.processes.world import World
from rlkern.trainer.reward.functions import TASK
from rlkern.trainer.settings import Layer, Settings, differing, dump
from rlkern.trainer.settings.contradictions import check_contradictions
from rlkern.trainer.settings.places import anchored
from rlkern.trainer.settings.resolve import Resolved, laid
from rlkern.trainer.show.display import Display

RESULT = "pipeline.json"
_STAGE = re.compile(r"(?<![\w.])stage:([A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class Stage:
    """A run of a pipeline: its settings, references to other stages still in them, its folder."""

    settings: Settings
    folder: Path

    @property
    def name(self) -> str:
        """What other stages call this one."""
        return str(self.settings.name)

    @property
    def trains(self) -> str:
        """policy or reward_model."""
        return self.settings.declared.trains


def stages_of(document: dict[str, Any], flags: dict[str, Any], source: str) -> list[Settings]:
    """Returns the settings of each stage: flags over its own over those of all stages.

    The flags algorithm and name would make all stages one; model is what the first one starts from.
    Raises UserError for a key of all stages that none of them reads.
    """
    stages: Any = document.get("stages")
    if not isinstance(stages, list) or not stages or not all(isinstance(s, dict) for s in stages):
        raise UserError(f"{source}: stages must be a list of mappings, got {stages!r}")
    if "algorithm" in flags:
        raise UserError(f"{source} holds a pipeline, whose stages say their algorithms themselves")
    common = {k: v for k, v in document.items() if k not in ("stages", "name")}
    over = {key: value for key, value in flags.items() if key not in ("model", "name")}
    default = Settings.model_fields["algorithm"].default
    found, policy = [], None
    for own in stages:
        algorithm = own.get("algorithm", common.get("algorithm", default))
        name = own.get("name", algorithm)
        place = f"{source}, stage {name}"
        start: dict[str, Any] = {"model": f"stage:{policy}"} if policy else {}
        if policy is None and "model" in flags:
            own = {**own, "model": flags["model"]}
        found.append(
            _stage(
                place,
                Layer(source, {**common, **start}, shared=True),
                Layer(place, {**own, "name": name}),
                Layer("flags", over, shared=True),
            )
        )
        known = declarations().get(algorithm)
        if known is not None and known.trains == "policy":
            policy = name
    for source_of_key, key in sorted(frozenset.intersection(*(each.left for each in found))):
        raise UserError(f"{source_of_key}: {key} is not read by any stage; leave it out")
    return [each.settings for each in found]


def _stage(place: str, *layers: Layer) -> Resolved:
    """Returns the same as resolved; a contradiction names the stage that has it."""
    found = laid(*layers)
    try:
        check_contradictions(found.settings)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return found


def plan(folder: Path, configs: Iterable[Settings]) -> list[Stage]:
    """Returns the stages, each with its folder; Raises UserError for a reference to no stage."""
    stages: list[Stage] = []
    for number, settings in enumerate(configs, 1):
        stage = Stage(settings, folder / f"{number}-{settings.name}")
        before = {earlier.name: earlier for earlier in stages}
        if stage.name in before:
            raise UserError(f"two stages are called {stage.name!r}: give one of them a name")
        rewards = ",".join(settings.reward.functions)
        for key, text, wanted in (
            ("model", settings.model, "policy"),
            ("teacher", settings.teacher or "", "policy"),
            ("reward", rewards, "reward_model"),
        ):
            for name in _STAGE.findall(text):
                _check_reference(stage, key, before.get(name), name, wanted)
        stages.append(stage)
    return stages


def _check_reference(stage: Stage, key: str, found: Stage | None, name: str, wanted: str) -> None:
    if found is None:
        raise UserError(
            f"stage {stage.name}: {key} names stage:{name}, but no stage before it is called so"
        )
    if found.trains != wanted:
        raise UserError(
            f"stage {stage.name}: {key} must name a stage that trains a {wanted.replace('_', ' ')},"
            f" but stage:{name} trains a {found.trains.replace('_', ' ')}"
        )


def check_stages(stages: list[Stage], world: World) -> None:
    """Raises UserError for the first stage whose settings cannot work.

    Before any of them runs: a model yet to be trained stands for itself by what it is made from.
    """
    models: dict[str, str] = {}
    for stage in stages:
        check_name(stage.name)

        def made(text: str) -> str:
            return _STAGE.sub(lambda match: models[match[1]], text)

        models[stage.name] = made(stage.settings.model)
        try:
            alone = _with(stage.settings, made, lambda text: _STAGE.sub(TASK, text))
            preflight.check(anchored(alone), world)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from error


def _with(
    settings: Settings, model: Callable[[str], str], reward: Callable[[str], str]
) -> Settings:
    """Returns the settings with every model (the teacher is one) and every reward replaced."""
    functions = tuple(reward(name) for name in settings.reward.functions)
    teacher = settings.teacher and model(settings.teacher)
    return settings.model_copy(
        update={
            "model": model(settings.model),
            "teacher": teacher,
            "reward": settings.reward.model_copy(update={"functions": functions}),
        }
    )


def settings_of(stage: Stage, stages: list[Stage]) -> Settings:
    """Returns the settings of a stage whose turn it is, folders in the place of references."""
    made = {earlier.name: earlier.folder for earlier in stages}

    def last(text: str) -> str:
        # Whole paths, so that the pipeline may be resumed from another place.
        return _STAGE.sub(lambda match: str(all_checkpoints(made[match[1]].resolve())[-1]), text)

    settings = _with(stage.settings, last, last)
    place = settings.output.model_copy(update={"dir": str(stage.folder.parent)})
    return settings.model_copy(update={"name": stage.folder.name, "output": place})


def run_pipeline(
    folder: Path, configs: list[Settings], *, resume: bool = False, display: Display | None = None
) -> list[dict]:
    """Returns the summaries of all stages; those that ended before a resume do not run again."""
    stages = plan(folder, configs)
    world = World.start(configs[0].device)
    check_stages(stages, world)
    if resume:
        _check_same(folder, configs)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already holds a run; add --resume to go on with it, or --name")
    display = display or Display(None if world.is_main else Console(quiet=True))
    world.barrier()  # everyone has seen the folder as it was
    if world.is_main:
        _write_plan(folder, configs)
    summaries: list[dict] = []
    for number, stage in enumerate(stages, 1):
        done = _finished(stage)
        said = f"stage {number} of {len(stages)}, {stage.name}"
        display.say(f"{said}: done before" if done else said)
        world.barrier()
        if not done:
            _train(stage, stages, folder)
            world.barrier()
        summaries.append(_finished(stage) or {})
        if world.is_main:
            write_text(folder / RESULT, json.dumps({"stages": summaries}, indent=1) + "\n")
    display.stages(folder, summaries)
    return summaries


def _write_plan(folder: Path, configs: list[Settings]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PLAN, _as_yaml(configs))
    except OSError as error:
        raise UserError(f"{folder} cannot hold a pipeline: {error}") from error


def _train(stage: Stage, stages: list[Stage], folder: Path) -> None:
    """Runs a stage to its end, going on with it if it had begun."""
    begun = (stage.folder / CONFIG).is_file()
    if stage.folder.is_dir() and not begun:
        remove_partial(stage.folder)
    try:
        train(settings_of(stage, stages), resume=begun)
    except UserError as error:
        sentence = f"stage {stage.name}: {error}; all stages: rlkern train --resume {folder}"
        raise UserError(sentence, code=error.code) from error


def _finished(stage: Stage) -> dict | None:
    """Returns the summary of a stage that has run to its end, None for another."""
    path = stage.folder / SUMMARY
    return json.loads(path.read_text()) if path.is_file() else None


def print_stages(stages: list[Settings]) -> int:
    """Returns 0 after printing the settings of all stages."""
    print(_as_yaml(stages), end="")
    return 0


def is_pipeline(folder: Path) -> bool:
    """Returns True for the directory of a pipeline."""
    return (folder / PLAN).is_file()


def _as_yaml(configs: list[Settings]) -> str:
    return to_yaml({"stages": [dump(settings) for settings in configs]})


def saved_stages(folder: Path, flags: dict[str, Any]) -> list[Settings]:
    """Returns the settings of the stages of a pipeline that has begun, with flags over them."""
    path = folder / PLAN
    stages = read(path, "a pipeline").get("stages")
    if not isinstance(stages, list):
        raise UserError(f"{path} cannot be read as a pipeline: it holds no stages")
    places = [f"{path}, stage {n}" for n in range(1, len(stages) + 1)]
    found = [
        _stage(place, Layer(place, each), Layer("flags", flags, shared=True))
        for place, each in zip(places, stages, strict=True)
    ]
    for place, key in sorted(frozenset.intersection(*(each.left for each in found))):
        raise UserError(f"{place}: {key} is not read by any stage; leave it out")
    return [each.settings for each in found]


def _check_same(folder: Path, configs: list[Settings]) -> None:
    if not is_pipeline(folder):
        raise UserError(f"there is no pipeline to resume in {folder}: it holds no {PLAN}")
    saved = saved_stages(folder, {})
    names = [[settings.name for settings in each] for each in (configs, saved)]
    if names[0] != names[1]:
        raise UserError(f"{folder} was started with the stages {names[1]}, not {names[0]}")
    begun = [(stage.folder / CONFIG).is_file() for stage in plan(folder, saved)]
    for settings, old, fixed in zip(configs, saved, begun):
        other = differing(settings, old) if fixed else None
        if other is not None:
            key, mine, its = other
            raise UserError(
                f"{folder} was started with {key} {its!r} in stage {settings.name}, not {mine!r};"
                " resume with its own settings, or choose another --name"
            )
