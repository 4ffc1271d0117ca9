# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a control run: JSON and safetensors in a folder that appears whole or not."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkern.control.environments import Environments
from rlkern.control.learner import Learner
from rlkern.runs.errors import UserError
from rlkern.runs.files import PARTIAL, publish
from rlkern.runs.folder import all_checkpoints, name_of, none_whole

STATE, TENSORS = "control.json", "tensors.safetensors"
_KEPT = 2  # one to go on from if the newest is damaged
_FORMAT = 1


def flattened(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Returns a tree as JSON can hold it, and puts its tensors and arrays into `tensors`.

    >>> found = {}
    >>> flattened({"a": [1, torch.ones(2)], 3: None}, found)
    {'pairs': [['a', [1, {'tensor': '.a.1'}]], [3, None]]}
    >>> list(found)
    ['.a.1']
    """
    if isinstance(tree, (Tensor, np.ndarray)):
        kind = "tensor" if isinstance(tree, Tensor) else "array"
        whole = tree.detach().cpu() if isinstance(tree, Tensor) else torch.from_numpy(tree.copy())
        tensors[path] = whole.contiguous().clone()
        return {kind: path}
    if isinstance(tree, dict):
        return {"pairs": [[k, flattened(v, tensors, f"{path}.{k}")] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return [flattened(each, tensors, f"{path}.{i}") for i, each in enumerate(tree)]
    if isinstance(tree, np.generic):
        return tree.item()
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a checkpoint holds no {type(tree).__name__} ({path})")


def restored(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns the tree that was flattened."""
    if isinstance(tree, list):
        return [restored(each, tensors) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "array" in tree:
        return tensors[tree["array"]].numpy()
    return {key: restored(value, tensors) for key, value in tree["pairs"]}


def save(run: Path, learner: Learner, environments: Environments, progress: dict) -> Path:
    """Returns the folder of a new checkpoint; the older ones but one go after it is safe."""
    target = run / name_of(environments.steps)
    tree = {
        "progress": progress,
        "learner": learner.state(),
        "environments": environments.state(),
        "numpy": learner.rng.bit_generator.state,
        "torch": torch.get_rng_state(),
        "python": list(random.getstate()[1]),
    }
    tensors: dict[str, Tensor] = {}
    state = {
        "format": _FORMAT,
        "settings": learner.settings.model_dump(mode="json"),
        "tree": flattened(tree, tensors),
    }

    def fill(folder: Path) -> None:
        save_file(tensors, folder / TENSORS)
        (folder / STATE).write_text(json.dumps(state))

    if not target.is_dir():
        publish(target, fill)
    for old in all_checkpoints(run)[:-_KEPT]:
        # Out of the way first: a folder that is being deleted must not look like a checkpoint.
        shutil.rmtree(old.rename(run / f"{PARTIAL}{old.name}"))
    return target


def newest(run: Path) -> tuple[Path | None, dict[str, Any], dict[str, Any], dict[Path, str]]:
    """Returns (the newest whole checkpoint of a run, its settings, its tree, what is wrong with
    newer ones), None and empty ones if it has saved none; Raises UserError if none is whole."""
    damaged: dict[Path, str] = {}
    for folder in reversed(all_checkpoints(run)):
        try:
            return folder, *read(folder), damaged
        except UserError as error:
            damaged[folder] = str(error).split(": ", 1)[-1]
    if damaged:
        raise none_whole(run, damaged)
    return None, {}, {}, damaged


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (settings, tree) of a checkpoint; Raises UserError for anything else."""
    try:
        state = json.loads((folder / STATE).read_text())
        if state["format"] != _FORMAT:
            raise ValueError(f"its format is {state['format']!r}, not {_FORMAT}")
        return state["settings"], restored(state["tree"], load_file(folder / TENSORS))
    except Exception as error:
        # safetensors raises its own class, not a subclass of OSError or ValueError.
        raise UserError(
            f"{folder} cannot be read as a checkpoint of rlkern control: {error}"
        ) from error


def restore(tree: dict[str, Any], learner: Learner, environments: Environments) -> dict[str, Any]:
    """Returns the progress after putting everything back."""
    environments.load(tree["environments"])
    learner.load(tree["learner"])
    learner.rng.bit_generator.state = tree["numpy"]
    torch.set_rng_state(tree["torch"])
    random.setstate((3, tuple(tree["python"]), None))
    return tree["progress"]
