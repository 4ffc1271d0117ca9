# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all; loading one runs
no code.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkern.runs.errors import UserError
from rlkern.runs.files import publish
from rlkern.runs.folder import all_checkpoints, name_of, none_whole
from rlkern.trainer.critic import FOLDER as CRITIC
from rlkern.trainer.parts import Parts
from rlkern.trainer.processes.parallel import like, whole, whole_state
from rlkern.trainer.progress import Progress
from rlkern.trainer.settings import Layer, Settings, differing, dump, resolve
from rlkern.trainer.update import Updater

STATE = "trainer.json"
# What is kept of a supervised start that was stopped; it goes once the run has a checkpoint.
SUPERVISED = "supervised"
_FORMAT = 3
_FILES = ("optimizer.safetensors", "random.safetensors")


def damage(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint's files, None for one that is whole: each has as many
    bytes as it says itself. What they hold is not looked at."""
    for path in (folder / STATE, *sorted(folder.rglob("*.safetensors"))):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            else:
                with safe_open(path, "pt"):
                    pass
        except (OSError, ValueError, SafetensorError) as error:
            return f"{path.name}: {str(error).splitlines()[0]}"
    missing = [name for name in _FILES if not (folder / name).is_file()]
    return f"{missing[0]} is not there" if missing else None


def newest(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """Returns the newest whole checkpoint of a run, or of its supervised start, None if it has
    saved none, and what is wrong with each newer one; Raises UserError if none is whole."""
    damaged: dict[Path, str] = {}
    start = run / SUPERVISED
    for folder in [*reversed(all_checkpoints(run)), *([start] if start.is_dir() else [])]:
        why = damage(folder)
        if why is None:
            return folder, damaged
        damaged[folder] = why
    if damaged:
        raise none_whole(run, damaged)
    return None, damaged


def save(run: Path, parts: Parts, updater: Updater) -> Path:
    """Returns the folder of a new checkpoint; older ones beyond output.keep_checkpoints are removed
    after it is safe.
    """
    target = run / name_of(parts.progress.step)
    _write(target, parts, updater)
    if parts.world.is_main:
        for old in [
            *all_checkpoints(run)[: -parts.settings.output.keep_checkpoints],
            *filter(Path.is_dir, [run / SUPERVISED]),
        ]:
            # Out of the way first: a folder that is being deleted must not look like a checkpoint.
            shutil.rmtree(old.rename(run / f".partial-{old.name}"))
    parts.world.barrier()
    return target


def save_start(run: Path, parts: Parts, updater: Updater) -> None:
    """Keeps a supervised start that stops before its end, in the place of what was kept of it."""
    place = run / SUPERVISED
    if parts.world.is_main and place.is_dir():
        shutil.rmtree(place.rename(run / f".partial-{place.name}"))
    _write(place, parts, updater)


def _write(target: Path, parts: Parts, updater: Updater) -> None:
    weights, optimizer = Weights.of(parts), _optimizer_tensors(parts, updater)

    def fill(folder: Path) -> None:
        weights.save(parts, folder)
        save_file(optimizer, folder / "optimizer.safetensors")
        save_file(_random_states(parts), folder / "random.safetensors")
        state = {
            "format": _FORMAT,
            "progress": dataclasses.asdict(parts.progress),
            "settings": dump(parts.settings),
        }
        (folder / STATE).write_text(json.dumps(state, indent=1))

    if parts.world.is_main and not target.is_dir():
        publish(target, fill)
    parts.world.barrier()


@dataclass
class Weights:
    """All weights of the models by name if they are spread over processes, else None."""

    policy: dict[str, Tensor] | None = None
    critic: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, parts: Parts) -> Weights:
        """Returns the weights of a run; every process has to ask."""
        critic = None if parts.critic is None else whole_state(parts.critic.module)
        return cls(whole_state(parts.policy.model), critic)

    def save(self, parts: Parts, folder: Path) -> None:
        """Writes the policy in Hugging Face format, and the critic, if any, into a folder in it."""
        parts.policy.save(folder, self.policy)
        if parts.critic is not None:
            parts.critic.save(folder / CRITIC, self.critic)


def read_settings(folder: Path) -> tuple[dict[str, Any], Settings]:
    """Returns (all that trainer.json holds, the settings in it); Raises UserError for anything
    else."""
    try:
        state = json.loads((folder / STATE).read_text())
        if state.get("format") != _FORMAT:
            raise UserError(
                f"{folder} must have checkpoint format {_FORMAT} to be resumed, got"
                f" {state.get('format')!r}; --model {folder} starts a new run from its weights"
            )
        return state, resolve(Layer(str(folder), state["settings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} cannot be read as a checkpoint of rlkern train: {error}"
        ) from error


def read_progress(folder: Path, settings: Settings) -> Progress:
    """Returns the progress a checkpoint holds; Raises UserError if it is not one of this run."""
    state, saved = read_settings(folder)
    if other := differing(settings, saved):
        key, mine, its = other
        raise UserError(
            f"{folder} belongs to another run: its {key} is {its!r}, this run has {mine!r}"
        )
    return Progress(**state["progress"])


def restore(folder: Path, parts: Parts, updater: Updater) -> None:
    """Puts optimizer and random states back; the weights are read by those who make the models."""
    tensors, parameters = _load(folder / "optimizer.safetensors"), parts.parameters()
    # A weight that never had a gradient, such as a policy's while its critic warms up, has none.
    names = {name.rsplit(".", 1)[0] for name in tensors}
    complete = {f"{name}.{key}" for name in names for key in _KEYS}
    if set(tensors) != complete or names - {*parameters}:
        raise UserError(f"{folder} holds the optimizer of another model")
    # In one order, whatever a set's: every process has to ask for the same one at the same time.
    for name, parameter in parameters.items():
        if name not in names:
            continue
        moments = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in _KEYS}
        if moments["exp_avg"].shape != parameter.shape:
            raise UserError(
                f"{folder} holds the optimizer of another model: {name} is"
                f" {tuple(parameter.shape)}, stored {tuple(moments['exp_avg'].shape)}"
            )
        spread = {key: like(value, parameter) for key, value in moments.items()}
        updater.optimizer.state[parameter] = spread
    states = _load(folder / "random.safetensors")
    torch.set_rng_state(states["torch"])
    parts.generator.set_state(states["sampler"])
    if "cuda" in states and parts.policy.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], parts.policy.device)


_KEYS = ("step", "exp_avg", "exp_avg_sq")


class Place:
    """Where a run is before a step: what sampling moves, and weights do not hold."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._progress = dataclasses.asdict(parts.progress)
        self._sampler = parts.generator.get_state()

    def put_back(self) -> None:
        """Takes the run back, from a step that ended before its first update."""
        for name, value in self._progress.items():
            setattr(self._parts.progress, name, value)
        self._parts.generator.set_state(self._sampler)


def _optimizer_tensors(parts: Parts, updater: Updater) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in parts.parameters().items():
        moments: dict[str, Any] = updater.optimizer.state.get(parameter, {})
        tensors.update(
            {f"{name}.{key}": whole(moments[key].detach()).contiguous() for key in _KEYS if moments}
        )
    return tensors


def _random_states(parts: Parts) -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state(), "sampler": parts.generator.get_state()}
    if parts.policy.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(parts.policy.device)
    return states


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        # safetensors raises its own class, not a subclass of OSError or ValueError.
        raise UserError(f"{path} cannot be read: {error}") from error
