# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all; loading one runs
no code.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkern.trainer.config import Config, differing_key, from_dict
from rlkern.trainer.errors import UserError
from rlkern.trainer.files import publish
from rlkern.trainer.models import Policy

_FORMAT = 1


@dataclass
class Progress:
    """How far a run is: all that the rest of the run depends on besides weights and random states.

    step counts rollouts, update counts optimizer steps, position is the place in the task's stream.
    """

    step: int = 0
    update: int = 0
    position: int = 0
    num_tokens: int = 0
    degenerate_steps: int = 0
    skipped_updates: int = 0
    seconds: float = 0.0
    before: dict[str, float] = field(default_factory=dict)


def name_of(step: int) -> str:
    """Returns the folder name of the checkpoint after `step` steps."""
    return f"checkpoint-{step}"


def all_checkpoints(run: Path) -> list[Path]:
    """Returns the checkpoints of a run, oldest first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.split("-", 1)[1].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.split("-", 1)[1]))


def save(
    run: Path,
    *,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    progress: Progress,
    config: Config,
) -> Path:
    """Returns the folder of a new checkpoint; older ones beyond keep_checkpoints are removed after
    it is safe.
    """
    target = run / name_of(progress.step)

    def fill(folder: Path) -> None:
        policy.save(folder)
        save_file(_optimizer_tensors(policy, optimizer), folder / "optimizer.safetensors")
        save_file(_random_states(policy, generator), folder / "random.safetensors")
        state = {
            "format": _FORMAT,
            "progress": dataclasses.asdict(progress),
            "config": dataclasses.asdict(config),
        }
        (folder / "trainer.json").write_text(json.dumps(state, indent=1))

    if not target.is_dir():
        publish(target, fill)
    for old in all_checkpoints(run)[: -config.keep_checkpoints]:
        # Out of the way first: a folder that is being deleted must not look like a checkpoint.
        shutil.rmtree(old.rename(run / f".partial-{old.name}"))
    return target


def read_state(folder: Path, config: Config) -> Progress:
    """Returns the progress a checkpoint holds; raises one sentence if it is not one of this run."""
    try:
        state = json.loads((folder / "trainer.json").read_text())
        progress, saved = Progress(**state["progress"]), from_dict(state["config"], str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} cannot be read as a checkpoint of rlkern train: {error}"
        ) from error
    if state.get("format") != _FORMAT:
        raise UserError(
            f"{folder} must have checkpoint format {_FORMAT}, got {state.get('format')!r}"
        )
    key = differing_key(config, saved)
    if key is not None:
        raise UserError(
            f"{folder} belongs to another run: its {key} is {getattr(saved, key)!r},"
            f" this run has {getattr(config, key)!r}"
        )
    return progress


def restore(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    """Put optimizer and random states back; the weights are read by load_policy."""
    tensors = _load(folder / "optimizer.safetensors")
    expected = {f"{name}.{key}" for name in policy.parameters() for key in _KEYS}
    if tensors and set(tensors) != expected:
        raise UserError(f"{folder} holds the optimizer of another model")
    for name, parameter in policy.parameters().items() if tensors else ():
        moments = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in _KEYS}
        if moments["exp_avg"].shape != parameter.shape:
            raise UserError(
                f"{folder} holds the optimizer of another model: {name} is"
                f" {tuple(parameter.shape)},"
                f" stored {tuple(moments['exp_avg'].shape)}"
            )
        optimizer.state[parameter] = moments
    states = _load(folder / "random.safetensors")
    torch.set_rng_state(states["torch"])
    generator.set_state(states["sampler"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], policy.device)


_KEYS = ("step", "exp_avg", "exp_avg_sq")


def _optimizer_tensors(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in policy.parameters().items():
        moments: dict[str, Any] = optimizer.state.get(parameter, {})
        tensors.update(
            {f"{name}.{key}": moments[key].detach().contiguous() for key in _KEYS if moments}
        )
    return tensors


def _random_states(policy: Policy, generator: torch.Generator) -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state(), "sampler": generator.get_state()}
    if policy.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(policy.device)
    return states


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        # safetensors raises its own class, not a subclass of OSError or ValueError.
        raise UserError(f"{path} cannot be read: {error}") from error
