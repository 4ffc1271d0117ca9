# SPDX-License-Identifier: Apache-2.0
"""The best checkpoint of a run: `best`, a link to a folder that was written whole before it.

And which checkpoint is meant by a run, wherever a run stands for a model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rlkern.runs.errors import UserError
from rlkern.runs.files import PARTIAL, publish
from rlkern.runs.folder import all_checkpoints, name_of

BEST = "best"
NOTE = "best.json"
KEY = "eval/accuracy"
NEWEST = "newest"


def keep(run: Path, step: int, values: dict[str, float], save: Callable[[Path], None]) -> bool:
    """Returns whether these weights are the best of the run so far, which `best` then holds.

    `save` writes the weights into a folder. The folder is whole before the link moves to it in one
    step, so a kill leaves the old best or the new one. Of equal accuracies the first is kept: a run
    that goes on after a kill finds its own best again and leaves it.
    """
    accuracy = values[KEY]
    known = read(run)
    # NaN is no accuracy, so nothing is better than it.
    if not accuracy > (known[KEY] if known else float("-inf")):
        return False
    folder = run / f"{BEST}-{step}"

    def fill(partial: Path) -> None:
        save(partial)
        (partial / NOTE).write_text(json.dumps({KEY: accuracy, "step": step}) + "\n")

    if folder.is_dir():
        # Left by a kill before the link moved: maybe another run's settings, so written again.
        _remove(folder)
    publish(folder, fill)
    link = run / f"{PARTIAL}{BEST}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, run / BEST)
    for old in run.glob(f"{BEST}-*"):
        if old != folder:
            _remove(old)
    return True


def read(run: Path) -> dict | None:
    """Returns the accuracy and the step of a run's best checkpoint, None where there is none."""
    note = run / BEST / NOTE
    if not note.is_file():
        return None
    try:
        found = json.loads(note.read_text())
        return {KEY: float(found[KEY]), "step": int(found["step"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{note} cannot be read: {error}; delete {run / BEST}") from error


def chosen(run: Path, which: str = BEST) -> Path:
    """Returns the folder of a run's checkpoint: best (the newest where no best was kept), newest or
    a step; Raises UserError where the run has not got it."""
    saved = all_checkpoints(run)
    if which == BEST and read(run):
        return run / BEST
    if not saved:
        raise UserError(f"{run} holds no checkpoint yet: let it run until it has saved one")
    if which in (BEST, NEWEST):
        return saved[-1]
    wanted = run / name_of(int(which)) if which.isdecimal() else None
    if wanted not in saved:
        kept = ", ".join(folder.name.split("-")[1] for folder in saved)
        raise UserError(
            f"checkpoint must be best, newest or a step that {run} kept ({kept}), got {which!r}"
        )
    assert wanted is not None
    return wanted


def label(folder: Path) -> str:
    """Returns what a person reads of a checkpoint: its name, and of the best its step."""
    noted = read(folder.parent) if folder.name == BEST else None
    return f"{folder.name} (step {noted['step']})" if noted else folder.name


def _remove(folder: Path) -> None:
    """Out of the way first: a folder that is being deleted must not look whole."""
    shutil.rmtree(folder.rename(folder.with_name(f"{PARTIAL}{folder.name}")))
