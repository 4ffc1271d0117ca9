# SPDX-License-Identifier: Apache-2.0
"""Settings of the trainer in YAML files."""

from __future__ import annotations

import os
from pathlib import Path

from rlkern.runs.folder import check_command
from rlkern.runs.settings.layers import Layer
from rlkern.runs.settings.yaml_file import read, to_yaml
from rlkern.trainer.settings.resolve import dump, resolve
from rlkern.trainer.settings.schema import Settings


def saved(path: os.PathLike | str) -> Settings:
    """Returns the settings that a run wrote down."""
    given = read(path)
    check_command(Path(path), given, "train")
    return resolve(Layer(str(path), given))


def text(settings: Settings) -> str:
    """Returns what a run writes down of its settings: every key that it reads."""
    return to_yaml(dump(settings))
