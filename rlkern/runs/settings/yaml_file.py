# SPDX-License-Identifier: Apache-2.0
"""Settings in YAML files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from rlkern.runs.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML whose keys are given once, and whose 1e-3 is a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Returns the mapping; Raises a YAML error for a key that is there twice."""
        seen: list[Any] = []
        for place, _ in node.value:
            key = self.construct_object(place, deep=True)
            if key in seen:
                line = place.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key!r} is given twice, again in line {line}")
            seen.append(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a point before the exponent, and a sign in it.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parsed(text: str) -> Any:
    """Returns what a text means in YAML.

    >>> parsed("1e-3"), parsed("true"), parsed("[1, 2]")
    (0.001, True, [1, 2])
    """
    return yaml.load(text, _Loader)  # a SafeLoader


def read(path: os.PathLike | str, what: str = "settings") -> dict[str, Any]:
    """Returns the mapping of a YAML file; Raises UserError if it holds none."""
    try:
        values = parsed(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as {what}: {why}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold key: value lines, got {type(values).__name__}")
    return values


def to_yaml(values: dict[str, Any]) -> str:
    """Returns a mapping as YAML, in its order."""
    return yaml.safe_dump(values, sort_keys=False)
