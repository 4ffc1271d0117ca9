# SPDX-License-Identifier: Apache-2.0
"""Run directories: which folder a run of the trainer writes to."""

from __future__ import annotations

from pathlib import Path

from rlkern.runs.best import NOTE
from rlkern.runs.files import write_text
from rlkern.runs.folder import (
    CONFIG,
    check_same,
    existing_folder,
    is_checkpoint,
    joined,
    new_folder,
)
from rlkern.trainer.settings import Settings, differing
from rlkern.trainer.settings.document import saved, text
from rlkern.trainer.settings.places import anchored


def automatic_name(settings: Settings) -> str:
    """Returns the name of a run that was given none.

    >>> from rlkern.trainer.settings import of
    >>> automatic_name(of(model="models/llama"))
    'grpo-llama-addition'

    A checkpoint is called as its run is.

    >>> automatic_name(of(model="runs/first/checkpoint-9", algorithm="gspo"))
    'gspo-first-addition'
    """
    model = Path(settings.model)
    if is_checkpoint(model) or (model / NOTE).is_file():
        model = model.parent
    return joined(settings.algorithm, model.name, Path(settings.asked).stem)


def new_run(settings: Settings) -> Path:
    """Returns the directory of a fresh run, not made yet; an existing run is never touched."""
    return new_folder(Path(settings.output.dir), settings.name, automatic_name(settings))


def write_settings(run: Path, settings: Settings) -> None:
    """Writes config.yaml; on a resume the settings that may change are renewed."""
    write_text(run / CONFIG, text(settings))


def existing_run(settings: Settings) -> Path:
    """Returns the directory that --resume goes on with; Raises UserError if there is none or it is
    another run.
    """
    run = existing_folder(Path(settings.output.dir), settings.name, automatic_name(settings))
    # Of a run begun elsewhere, or before paths were whole, the same places are named in other ways.
    check_same(run, differing(settings, anchored(saved(run / CONFIG))))
    return run
