# SPDX-License-Identifier: Apache-2.0
"""Settings in YAML files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rlkern.runs.errors import UserError

_TAG = "tag:yaml.org,2002:"
_MERGE, _INT, _FLOAT, _TIME = (f"{_TAG}{name}" for name in ("merge", "int", "float", "timestamp"))


class _Loader(yaml.SafeLoader):
    """YAML whose keys are given once, whose 1e-3 is a number, and whose numbers are those of flags:
    YAML 1.1 reads 010 as 8, 1:30 as 90 and 2026-01-02 as a date."""

    yaml_implicit_resolvers: ClassVar[dict] = {
        first: [(tag, form) for tag, form in known if tag not in (_INT, _FLOAT, _TIME)]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        # At once, not when all is read: what holds itself is then refused.
        self.deep_construct = True

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Returns the mapping; Raises a YAML error for a key that is there twice."""
        seen: list[Any] = []
        for place, _ in node.value:
            if place.tag == _MERGE:  # keys of another mapping, below those that stand here
                continue
            key = self.construct_object(place, deep=True)
            if key in seen:
                line = place.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key!r} is given twice, again in line {line}")
            seen.append(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    _INT,
    re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def parsed(text: str) -> Any:
    """Returns what a text means in YAML; Raises yaml.YAMLError if it means nothing.

    >>> parsed("1e-3"), parsed("true"), parsed("[1, 2]")
    (0.001, True, [1, 2])
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except ValueError as error:  # a number of thousands of digits
        raise yaml.YAMLError(str(error)) from error
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def read(path: os.PathLike | str, what: str = "settings") -> dict[str, Any]:
    """Returns the mapping of a YAML file; Raises UserError if it holds none."""
    try:
        values = parsed(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as {what}: {why}") from error
    if values is None:
        raise UserError(f"{path} must hold key: value lines, it is empty")
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold key: value lines, got {type(values).__name__}")
    return values


def to_yaml(values: dict[str, Any]) -> str:
    """Returns a mapping as YAML, in its order."""
    return yaml.safe_dump(values, sort_keys=False)
