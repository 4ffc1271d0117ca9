# SPDX-License-Identifier: Apache-2.0
"""Settings in YAML files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from rlkern.trainer.errors import UserError
from rlkern.trainer.settings.layers import Layer
from rlkern.trainer.settings.resolve import dump, resolve
from rlkern.trainer.settings.schema import Settings


class _Loader(yaml.SafeLoader):
    """YAML whose keys are given once, and whose 1e-3 is a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Returns the mapping; Raises a YAML error for a key that is there twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for index, key in enumerate(keys) if key in keys[:index]]
        if twice:
            raise yaml.YAMLError(f"the key {twice[0]!r} is given twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def read(path: os.PathLike | str, what: str = "settings") -> dict[str, Any]:
    """Returns the mapping of a YAML file; Raises UserError if it holds none."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as {what}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold key: value lines, got {type(values).__name__}")
    return values


def to_yaml(values: dict[str, Any]) -> str:
    """Returns a mapping as YAML, in its order."""
    return yaml.safe_dump(values, sort_keys=False)


def saved(path: os.PathLike | str) -> Settings:
    """Returns the settings that a run wrote down."""
    return resolve(Layer(str(path), read(path)))


def text(settings: Settings) -> str:
    """Returns what a run writes down of its settings: every key that it reads."""
    return to_yaml(dump(settings))
