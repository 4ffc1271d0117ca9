# SPDX-License-Identifier: Apache-2.0
"""Settings as flags: one per key, in groups; nothing here imports torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pydantic.fields import FieldInfo

from rlkern.cli.parser import Parser
from rlkern.runs.settings.group import Group
from rlkern.runs.settings.layers import classes, optional
from rlkern.runs.settings.message import expected

NULL = "null"


def add_settings(parser: Parser, root: type[Group], *, title: str = "the run") -> None:
    """Adds a flag for every key, and one for every group that has a main key; title is over those
    that are in no group."""
    plain = parser.add_argument_group(title)
    for name, info in root.model_fields.items():
        kinds = classes(info.annotation)
        if not kinds:
            _add(plain, name, info)
            continue
        group = parser.add_argument_group(*_title(name, kinds))
        _add_group(group, name, kinds, info)


def _add_group(target: Any, path: str, kinds: Sequence[type[Group]], info: FieldInfo) -> None:
    """Adds the flags of a group's alternatives, each once; that of its main key first."""
    if kinds[0].main is not None:
        off = f"; {NULL} for none" if optional(info) else ""
        text = f"the same as --{path}.{kinds[0].main}{off}"
        target.add_argument(f"--{path}", metavar="X", help=text, default=argparse.SUPPRESS)
    for name in dict.fromkeys(name for kind in kinds for name in kind.model_fields):
        infos = [kind.model_fields[name] for kind in kinds if name in kind.model_fields]
        key, below = f"{path}.{name}", classes(infos[0].annotation)
        if below:
            _add_group(target, key, below, infos[0])
        else:
            _add(target, key, *infos)


def _title(name: str, kinds: Sequence[type[Group]]) -> tuple[str, str]:
    """Returns the heading of a group and what its classes say of it."""
    says = [" ".join((kind.__doc__ or "").split()).removesuffix(".") for kind in kinds]
    return name, "; or ".join(dict.fromkeys(text.partition(": ")[2] or text for text in says)) + "."


def _add(group: Any, key: str, *infos: Any) -> None:
    info = infos[0]
    default = (
        "" if info.is_required() or info.default_factory else f" (default {_shown(info.default)})"
    )
    says = " ".join((info.description or "").split())
    words = expected(*infos)
    values = "" if words in ("text", "key: value pairs") else f" [{words}]"
    text = f"{says}{values}{default}".replace("%", "%%")
    group.add_argument(f"--{key}", metavar="X", help=text, default=argparse.SUPPRESS)


def _shown(value: Any) -> str:
    if value is None:
        return NULL
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
