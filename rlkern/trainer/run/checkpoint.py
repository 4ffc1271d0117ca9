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
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkern.trainer.config import Config, differing_key, from_dict
from rlkern.trainer.errors import UserError
from rlkern.trainer.processes.parallel import whole, whole_state
from rlkern.trainer.progress import Progress
from rlkern.trainer.run.files import publish

if TYPE_CHECKING:
    from rlkern.trainer.session import Session

_FORMAT = 2
CRITIC = "critic"


def name_of(step: int) -> str:
    """Returns the folder name of the checkpoint after `step` steps."""
    return f"checkpoint-{step}"


def all_checkpoints(run: Path) -> list[Path]:
    """Returns the checkpoints of a run, oldest first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.split("-", 1)[1].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.split("-", 1)[1]))


def save(run: Path, session: Session) -> Path:
    """Returns the folder of a new checkpoint; older ones beyond keep_checkpoints are removed after
    it is safe.
    """
    target = run / name_of(session.progress.step)
    weights, optimizer = Weights.of(session), _optimizer_tensors(session)

    def fill(folder: Path) -> None:
        weights.save(session, folder)
        save_file(optimizer, folder / "optimizer.safetensors")
        save_file(_random_states(session), folder / "random.safetensors")
        state = {
            "format": _FORMAT,
            "progress": dataclasses.asdict(session.progress),
            "config": dataclasses.asdict(session.config),
        }
        (folder / "trainer.json").write_text(json.dumps(state, indent=1))

    if session.world.is_main:
        if not target.is_dir():
            publish(target, fill)
        for old in all_checkpoints(run)[: -session.config.keep_checkpoints]:
            # Out of the way first: a folder that is being deleted must not look like a checkpoint.
            shutil.rmtree(old.rename(run / f".partial-{old.name}"))
    session.world.barrier()
    return target


@dataclass
class Weights:
    """All weights of the models by name where they are spread over processes, else None."""

    policy: dict[str, Tensor] | None = None
    critic: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, session: Session) -> Weights:
        """Returns the weights of a session; every process has to ask."""
        critic = None if session.critic is None else whole_state(session.critic.module)
        return cls(whole_state(session.policy.model), critic)

    def save(self, session: Session, folder: Path) -> None:
        """Write the policy in Hugging Face format, and the critic, if any, into a folder in it."""
        session.policy.save(folder, self.policy)
        if session.critic is not None:
            session.critic.save(folder / CRITIC, self.critic)


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


def restore(folder: Path, session: Session) -> None:
    """Put optimizer and random states back; the weights are read by those who make the models."""
    tensors, parameters = _load(folder / "optimizer.safetensors"), session.parameters()
    # A weight that never had a gradient, such as a policy's while its critic warms up, has none.
    names = {name.rsplit(".", 1)[0] for name in tensors}
    if set(tensors) != {f"{name}.{key}" for name in names for key in _KEYS} or names - {
        *parameters
    }:
        raise UserError(f"{folder} holds the optimizer of another model")
    for name in names:
        parameter = parameters[name]
        moments = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in _KEYS}
        if moments["exp_avg"].shape != parameter.shape:
            raise UserError(
                f"{folder} holds the optimizer of another model: {name} is"
                f" {tuple(parameter.shape)},"
                f" stored {tuple(moments['exp_avg'].shape)}"
            )
        session.optimizer.state[parameter] = moments
    states = _load(folder / "random.safetensors")
    torch.set_rng_state(states["torch"])
    session.generator.set_state(states["sampler"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], session.policy.device)


_KEYS = ("step", "exp_avg", "exp_avg_sq")


def _optimizer_tensors(session: Session) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in session.parameters().items():
        moments: dict[str, Any] = session.optimizer.state.get(parameter, {})
        tensors.update(
            {f"{name}.{key}": whole(moments[key].detach()).contiguous() for key in _KEYS if moments}
        )
    return tensors


def _random_states(session: Session) -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state(), "sampler": session.generator.get_state()}
    if session.policy.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(session.policy.device)
    return states


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        # safetensors raises its own class, not a subclass of OSError or ValueError.
        raise UserError(f"{path} cannot be read: {error}") from error
