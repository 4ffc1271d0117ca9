# SPDX-License-Identifier: Apache-2.0
"""Runs one after the other, each from what the ones before it made: SFT, reward model, PPO, …

A pipeline is a YAML file whose `stages` are laid one by one over its other keys. Stage n is an
ordinary run in the folder <n>-<name> of the pipeline's own; its name is `name`, or its algorithm's.
It starts from the newest policy of the stages before it unless it says `model` itself. In `model`
and `reward` the word stage:<name> means the last checkpoint of that stage.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from rlkern.trainer.checked import check, checked_task
from rlkern.trainer.config import Config, differing_key, from_dict
from rlkern.trainer.errors import UserError
from rlkern.trainer.loop import SUMMARY, train
from rlkern.trainer.processes.parallel import check_parallel
from rlkern.trainer.processes.world import World
from rlkern.trainer.reward import TASK, load_rewards
from rlkern.trainer.run.checkpoint import all_checkpoints
from rlkern.trainer.run.files import remove_partial, write_text
from rlkern.trainer.run.rundir import CONFIG
from rlkern.trainer.settings import check_name, find_algorithm, resolve
from rlkern.trainer.show.display import Display

PLAN, RESULT = "pipeline.yaml", "pipeline.json"
_STAGE = re.compile(r"(?<![\w.])stage:([A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class Stage:
    """A run of a pipeline: its settings, references to other stages still in them, its folder."""

    config: Config
    folder: Path

    @property
    def name(self) -> str:
        """Returns what other stages call this one."""
        return str(self.config.name)

    @property
    def trains(self) -> str:
        """Returns policy or reward_model."""
        return find_algorithm(self.config.algorithm).trains


def layered(document: dict[str, Any], flags: dict[str, Any], source: str) -> list[dict[str, Any]]:
    """Returns the settings of each stage: flags over its own over those of all stages.

    The flags algorithm and name would make all stages one; model is what the first one starts from.
    """
    stages: Any = document.get("stages")
    if not isinstance(stages, list) or not stages or not all(isinstance(s, dict) for s in stages):
        raise UserError(f"{source}: stages must be a list of mappings, got {stages!r}")
    if "algorithm" in flags:
        raise UserError(f"{source} holds a pipeline, whose stages say their algorithms themselves")
    common = {k: v for k, v in document.items() if k not in ("stages", "name")}
    over = {key: value for key, value in flags.items() if key not in ("model", "name")}
    found, policy = [], None
    for own in stages:
        values = {**common, **({"model": f"stage:{policy}"} if policy else {}), **own, **over}
        if policy is None and "model" in flags:
            values["model"] = flags["model"]
        algorithm = values.get("algorithm", Config.algorithm)
        values.setdefault("name", algorithm)
        if find_algorithm(algorithm).trains == "policy":
            policy = values["name"]
        found.append(values)
    return found


def plan(folder: Path, configs: list[Config]) -> list[Stage]:
    """Returns the stages, each with its folder; raises one sentence if a reference has no sense."""
    stages: list[Stage] = []
    for number, config in enumerate(configs, 1):
        stage = Stage(config, folder / f"{number}-{config.name}")
        before = {earlier.name: earlier for earlier in stages}
        if stage.name in before:
            raise UserError(f"two stages are called {stage.name!r}: give one of them a name")
        for key, wanted in (("model", "policy"), ("reward", "reward_model")):
            for name in _STAGE.findall(getattr(config, key) or ""):
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
    """Returns nothing; raises one sentence for the first stage whose settings cannot work.

    Before any of them runs: a model yet to be trained stands for itself by what it is made from.
    """
    models: dict[str, str] = {}
    for stage in stages:
        check_name(stage.name)
        model = _STAGE.sub(lambda match: models[match[1]], stage.config.model)
        models[stage.name] = model
        reward = stage.config.reward and _STAGE.sub(TASK, stage.config.reward)
        config = resolve(dataclasses.replace(stage.config, model=model, reward=reward))
        try:
            algorithm, _ = check(config)
            task, _ = checked_task(config, algorithm)
            load_rewards(config, task)
            check_parallel(config, world)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from error


def settings_of(stage: Stage, stages: list[Stage]) -> Config:
    """Returns the settings of a stage whose turn it is, folders in the place of references."""
    made = {earlier.name: earlier.folder for earlier in stages}

    def last(match: re.Match[str]) -> str:
        # Whole paths, so that the pipeline may be resumed from another place.
        return str(all_checkpoints(made[match[1]].resolve())[-1])

    config = stage.config
    return dataclasses.replace(
        config,
        name=stage.folder.name,
        runs_dir=str(stage.folder.parent),
        model=_STAGE.sub(last, config.model),
        reward=config.reward and _STAGE.sub(last, config.reward),
    )


def run_pipeline(
    folder: Path, configs: list[Config], *, resume: bool = False, display: Display | None = None
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


def _write_plan(folder: Path, configs: list[Config]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PLAN, _as_yaml(configs))
    except OSError as error:
        raise UserError(f"{folder} cannot hold a pipeline: {error}") from error


def _train(stage: Stage, stages: list[Stage], folder: Path) -> None:
    """Run a stage to its end, going on with it if it had begun."""
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


def is_pipeline(folder: Path) -> bool:
    """Returns True for the directory of a pipeline."""
    return (folder / PLAN).is_file()


def _as_yaml(configs: list[Config]) -> str:
    stages = [dataclasses.asdict(config) for config in configs]
    return yaml.safe_dump({"stages": stages}, sort_keys=False)


def saved_configs(folder: Path) -> list[Config]:
    """Returns the settings of the stages of a pipeline that has begun."""
    path = folder / PLAN
    try:
        stages = yaml.safe_load(path.read_text())["stages"]
        return [from_dict(values, str(path)) for values in stages]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a pipeline: {error}") from error


def _check_same(folder: Path, configs: list[Config]) -> None:
    if not is_pipeline(folder):
        raise UserError(f"there is no pipeline to resume in {folder}: it holds no {PLAN}")
    saved = saved_configs(folder)
    names = [[config.name for config in each] for each in (configs, saved)]
    if names[0] != names[1]:
        raise UserError(f"{folder} was started with the stages {names[1]}, not {names[0]}")
    begun = [(stage.folder / CONFIG).is_file() for stage in plan(folder, saved)]
    for config, old, fixed in zip(configs, saved, begun):
        key = differing_key(config, old) if fixed else None
        if key is not None:
            raise UserError(
                f"{folder} was started with {key} {getattr(old, key)!r} in stage {config.name}, not"
                f" {getattr(config, key)!r}; resume with its own settings, or choose another --name"
            )
