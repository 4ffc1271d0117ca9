# SPDX-License-Identifier: Apache-2.0
"""Run directories: which folder a run writes to, and when it may."""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path

from rlkern.trainer.config import Config, differing_key, load_yaml, to_yaml
from rlkern.trainer.errors import UserError
from rlkern.trainer.run.files import remove_partial, write_text

CONFIG = "config.yaml"
LOCK = ".lock"


def automatic_name(config: Config) -> str:
    """Returns the name of a run that was given none.

    >>> automatic_name(Config(model="models/llama"))
    'grpo-llama-addition'
    """
    parts = (config.algorithm, Path(config.model).name, config.task)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part) for part in parts)


def _numbered(config: Config) -> list[Path]:
    """Returns the existing directories with the automatic name, in the order of their numbers."""
    base = automatic_name(config)
    found = []
    for path in Path(config.runs_dir).glob(f"{base}*"):
        match = re.fullmatch(re.escape(base) + r"(?:-(\d+))?", path.name)
        if match:
            found.append((int(match.group(1) or 1), path))
    return [path for _, path in sorted(found)]


def new_run(config: Config) -> Path:
    """Returns the directory of a fresh run, not made yet; an existing run is never touched."""
    if config.name is None:
        taken = _numbered(config)
        last = int(taken[-1].name.removeprefix(automatic_name(config))[1:] or 1) if taken else 0
        name = automatic_name(config) + (f"-{last + 1}" if last else "")
    else:
        name = config.name
    run = Path(config.runs_dir) / name
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(
            f"{run} already holds a run; add --resume to go on with it, or choose another --name"
        )
    return run


def write_config(run: Path, config: Config) -> None:
    """Write config.yaml; on a resume the settings that may change are renewed."""
    write_text(run / CONFIG, to_yaml(config))


def existing_run(config: Config) -> Path:
    """Returns the directory that --resume goes on with; raises one sentence if there is none or it
    is another run.
    """
    if config.name is not None:
        run = Path(config.runs_dir) / config.name
    else:
        taken = _numbered(config)
        run = taken[-1] if taken else Path(config.runs_dir) / automatic_name(config)
    saved = saved_config(run)
    key = differing_key(config, saved)
    if key is not None:
        raise UserError(
            f"{run} was started with {key} {getattr(saved, key)!r}, not {getattr(config, key)!r};"
            " resume with its own settings, or choose another --name"
        )
    return run


def saved_config(run: Path) -> Config:
    """Returns the settings of a run; raises one sentence if there is none."""
    if not (run / CONFIG).is_file():
        raise UserError(f"there is no run to resume in {run}: it holds no {CONFIG}")
    return load_yaml(run / CONFIG)


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
