# SPDX-License-Identifier: Apache-2.0
"""Run folders: how they are named, which one is meant, and who may write to it."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rlkern.runs.errors import UserError
from rlkern.runs.files import remove_partial
from rlkern.runs.settings.layers import Layer
from rlkern.runs.settings.yaml_file import read

CONFIG = "config.yaml"
PLAN = "pipeline.yaml"
LOCK = ".lock"


def joined(*parts: str) -> str:
    """Returns the name of a run that was given none.

    >>> joined("grpo", "my model", "addition")
    'grpo-my_model-addition'
    """
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part) for part in parts)


def check_name(name: Any) -> None:
    """Raises UserError if the name of a run is not that of a folder, or none that a person could
    read or type."""
    if not isinstance(name, str) or name in (".", "..") or Path(name).name != name:
        raise UserError(f"name must be a folder name without slashes, got {name!r}")
    if not name.strip(" '\"") or not name.isprintable():
        raise UserError(f"name must hold letters or digits, and nothing unprintable, got {name!r}")


def _numbered(parent: Path, base: str) -> list[Path]:
    """Returns the existing folders of a name, in the order of their numbers."""
    found = []
    for path in parent.glob(f"{base}*"):
        match = re.fullmatch(re.escape(base) + r"(?:-(\d+))?", path.name)
        if match:
            found.append((int(match.group(1) or 1), path))
    return [path for _, path in sorted(found)]


def new_folder(parent: Path, name: str | None, base: str) -> Path:
    """Returns the folder of a fresh run, not made yet: `name`, or `base` with a number if it is
    taken. Raises UserError if the folder holds a run.
    """
    if name is None:
        taken = _numbered(parent, base)
        last = int(taken[-1].name.removeprefix(base)[1:] or 1) if taken else 0
        name = base + (f"-{last + 1}" if last else "")
    check_name(name)
    run = parent / name
    # A run that was stopped before it wrote anything has left its lock.
    if run.exists() and (not run.is_dir() or any(x.name != LOCK for x in run.iterdir())):
        raise UserError(
            f"{run} already holds a run; add --resume to go on with it, or choose another --name"
        )
    return run


def existing_folder(parent: Path, name: str | None, base: str) -> Path:
    """Returns the folder that --resume goes on with, the last one of `base` without a name; Raises
    UserError if it holds no run.
    """
    if name is None:
        taken = _numbered(parent, base)
        run = taken[-1] if taken else parent / base
    else:
        check_name(name)
        run = parent / name
    if not (run / CONFIG).is_file():
        raise UserError(f"there is no run to resume in {run}: it holds no {CONFIG}")
    return run


def check_same(run: Path, difference: tuple[str, Any, Any] | None) -> None:
    """Raises UserError if there is a (key, value, value of the run) in which settings differ from
    those that a run was started with."""
    if difference is not None:
        key, mine, its = difference
        raise UserError(
            f"{run} was started with {key} {its!r}, not {mine!r}; resume with its own settings, or"
            " choose another --name"
        )


def saved_layers(run: Path, parent_key: str, command: str) -> list[Layer]:
    """Returns the settings of a run, and over them the place that it is in now: its name, and the
    folder around it under parent_key. Raises UserError if there is none, or if another command of
    rlkern made it."""
    path = run / CONFIG
    if not path.is_file():
        raise UserError(f"there is no run to resume in {run}: it holds no {CONFIG}")
    whole = run.resolve()
    place = {"name": whole.name, parent_key: str(whole.parent)}
    given = read(path)
    check_command(path, given, command)
    return [Layer(str(path), given), Layer(str(path), place)]


def is_run(folder: Path) -> bool:
    """Returns whether a folder is that of a run; Raises UserError for that of a pipeline, which is
    several."""
    if (folder / PLAN).is_file():
        stages = ", ".join(str(stage.parent) for stage in sorted(folder.glob(f"*/{CONFIG}")))
        raise UserError(f"{folder} holds a pipeline: name one of its stages, {stages}")
    return (folder / CONFIG).is_file()


def name_of(step: int) -> str:
    """Returns the folder name of the checkpoint after `step` steps."""
    return f"checkpoint-{step}"


def set_aside(damaged: Iterable[Path]) -> None:
    """Renames checkpoints, so that the run can write them again."""
    for folder in damaged:
        place = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)


def say_damaged(damaged: dict[Path, str], saved: Path | None, warn: Callable[[str], None]) -> None:
    """Says which checkpoints cannot be gone on from, and from which one a run does."""
    for folder, why in damaged.items():
        assert saved is not None
        warn(
            f"{folder.name} is damaged ({why}); the run goes on after {saved.name}, and keeps it as"
            f" damaged-{folder.name}"
        )


def none_whole(run: Path, damaged: dict[Path, str]) -> UserError:
    """Returns what is said of a run of which no checkpoint is whole."""
    which = "; ".join(f"{folder.name}: {why}" for folder, why in damaged.items())
    return UserError(f"{run} has no whole checkpoint to go on from ({which}); begin a new run")


def check_command(path: Path, settings: dict[str, Any], command: str) -> None:
    """Raises UserError for the config.yaml of a run of `rlkern train` where `rlkern control` is
    asked, and the other way round. The runs of control alone have an environment."""
    its = "control" if "env" in settings else "train"
    if its != command:
        raise UserError(f"{path.parent} is a run of rlkern {its}, not of rlkern {command}")


def is_checkpoint(folder: Path) -> bool:
    """Returns whether a folder has the name of a checkpoint."""
    return re.fullmatch(r"checkpoint-\d+", folder.name) is not None


def all_checkpoints(run: Path) -> list[Path]:
    """Returns the checkpoints of a run, oldest first."""
    found = [path for path in run.glob("checkpoint-*") if is_checkpoint(path)]
    return sorted(found, key=lambda path: int(path.name.split("-", 1)[1]))


@contextlib.contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keeps a run to one process, in a directory that is made if need be, and clears what a killed
    one left half-written in it.

    The lock ends with its process, however that ends.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run} is in use by another process; wait until it has ended"
            ) from error
        remove_partial(run)
        yield
