# SPDX-License-Identifier: Apache-2.0
"""Run directories: which folder a run writes to, and when it may."""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path

from rlkern.runs.errors import UserError
from rlkern.runs.files import remove_partial, write_text
from rlkern.trainer.settings import Settings, differing
from rlkern.trainer.settings.document import saved, text

CONFIG = "config.yaml"
LOCK = ".lock"


def automatic_name(settings: Settings) -> str:
    """Returns the name of a run that was given none.

    >>> from rlkern.trainer.settings import of
    >>> automatic_name(of(model="models/llama"))
    'grpo-llama-addition'
    """
    parts = (settings.algorithm, Path(settings.model).name, Path(settings.asked).stem)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part) for part in parts)


def _numbered(settings: Settings) -> list[Path]:
    """Returns the existing directories with the automatic name, in the order of their numbers."""
    base = automatic_name(settings)
    found = []
    for path in Path(settings.output.dir).glob(f"{base}*"):
        match = re.fullmatch(re.escape(base) + r"(?:-(\d+))?", path.name)
        if match:
            found.append((int(match.group(1) or 1), path))
    return [path for _, path in sorted(found)]


def new_run(settings: Settings) -> Path:
    """Returns the directory of a fresh run, not made yet; an existing run is never touched."""
    if settings.name is None:
        taken = _numbered(settings)
        last = int(taken[-1].name.removeprefix(automatic_name(settings))[1:] or 1) if taken else 0
        name = automatic_name(settings) + (f"-{last + 1}" if last else "")
    else:
        name = settings.name
    run = Path(settings.output.dir) / name
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(
            f"{run} already holds a run; add --resume to go on with it, or choose another --name"
        )
    return run


def write_settings(run: Path, settings: Settings) -> None:
    """Writes config.yaml; on a resume the settings that may change are renewed."""
    write_text(run / CONFIG, text(settings))


def existing_run(settings: Settings) -> Path:
    """Returns the directory that --resume goes on with; Raises UserError if there is none or it is
    another run.
    """
    if settings.name is not None:
        run = Path(settings.output.dir) / settings.name
    else:
        taken = _numbered(settings)
        run = taken[-1] if taken else Path(settings.output.dir) / automatic_name(settings)
    if other := differing(settings, saved_settings(run)):
        key, mine, its = other
        raise UserError(
            f"{run} was started with {key} {its!r}, not {mine!r}; resume with its own settings, or"
            " choose another --name"
        )
    return run


def saved_settings(run: Path) -> Settings:
    """Returns the settings of a run; Raises UserError if there is none."""
    if not (run / CONFIG).is_file():
        raise UserError(f"there is no run to resume in {run}: it holds no {CONFIG}")
    return saved(run / CONFIG)


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
