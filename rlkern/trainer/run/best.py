# SPDX-License-Identifier: Apache-2.0
"""The best checkpoint of a run: `best`, a link to a folder that was written whole before it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rlkern.runs.errors import UserError
from rlkern.runs.files import PARTIAL, publish

BEST = "best"
NOTE = "best.json"
KEY = "eval/accuracy"


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


def _remove(folder: Path) -> None:
    """Out of the way first: a folder that is being deleted must not look whole."""
    shutil.rmtree(folder.rename(folder.with_name(f"{PARTIAL}{folder.name}")))
