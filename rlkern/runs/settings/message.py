# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a setting, in a sentence: place, key, expected, got, the nearest name."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rlkern.runs.settings.group import Group
from rlkern.runs.settings.layers import alternatives, classes
from rlkern.runs.settings.names import nearest, nearest_key
from rlkern.runs.settings.types import Says

_KINDS = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}


def expected(*infos: FieldInfo) -> str:
    """Returns in words what a field takes, or a field that several alternatives have.

    >>> from rlkern.trainer.settings.schema import Settings
    >>> expected(Settings.model_fields["steps"]), expected(Settings.model_fields["device"])
    ('a whole number, at least 1', 'one of auto, cpu, cuda')
    """
    info = infos[0]
    if info.annotation is dict or typing.get_origin(info.annotation) is dict:
        return "key: value pairs"
    for each in _metadata(info.annotation, info.metadata):
        if isinstance(each, Says):
            return each.expected
    values = list(dict.fromkeys(value for each in infos for value in _literals(each.annotation)))
    if values:
        return f"one of {', '.join(values)}" if len(values) > 1 else f"{values[0]} or null"
    for kind, words in _KINDS.items():
        if info.annotation is kind or kind in typing.get_args(info.annotation):
            return words
    return "key: value pairs"


def _of_values(info: FieldInfo) -> str:
    """Returns what the values of a mapping are, in words."""
    says = (each.expected for each in _metadata(info.annotation) if isinstance(each, Says))
    return next(says, "a value under a name that is text")


def _metadata(annotation: Any, own: Iterable[Any] = ()) -> Iterable[Any]:
    yield from own
    if typing.get_origin(annotation) is typing.Annotated:
        yield from annotation.__metadata__
    for part in typing.get_args(annotation):
        if typing.get_origin(part) is typing.Annotated:
            yield from part.__metadata__


def _literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    return [value for part in typing.get_args(annotation) for value in _literals(part)]


def path_of(error: Mapping[str, Any], root: type[Group]) -> tuple[str, ...]:
    """Returns the keys that lead to an error; the names of alternatives and of list places, which
    pydantic puts between them, are left out."""
    path: list[str] = []
    kinds: list[type[Group]] = [root]
    free = False
    for place in error["loc"]:
        known = [kind for kind in kinds if place in kind.model_fields]
        if known:
            info = known[0].model_fields[str(place)]
            kinds, free = classes(info.annotation), typing.get_origin(info.annotation) is dict
            path.append(str(place))
        elif free:  # a name of the user's own
            path.append(str(place))
            free = False
        elif error["type"] == "extra_forbidden" and place == error["loc"][-1]:
            path.append(str(place))
    return tuple(path)


def first_problem(
    found: ValidationError, root: type[Group], known: Iterable[str]
) -> tuple[tuple[str, ...], str]:
    """Returns (path, sentence without its place) of the first thing that is wrong; known are the
    keys that an unknown one may mean."""
    error: Any = found.errors(include_url=False)[0]
    path = path_of(error, root)
    key, value = ".".join(path), error["input"]
    kind = error["type"]
    if kind == "extra_forbidden":
        return path, _unknown(root, path, known)
    if kind == "union_tag_invalid":
        tags, given = error["ctx"]["expected_tags"].replace("'", ""), value["kind"]
        near = nearest(str(given), tags.split(", "))
        return path, f"{key}.kind must be one of {tags}, got {given!r}{near}"
    infos = _fields(root, path)
    if not infos:  # a value of a mapping whose names are free
        return path, f"{key} must be {_of_values(_fields(root, path[:-1])[0])}, got {value!r}"
    if kind == "missing":
        return path, f"{key} must be given with the other keys of {'.'.join(path[:-1])}"
    near = nearest(value, _literals(infos[0].annotation)) if isinstance(value, str) else ""
    return path, f"{key} must be {expected(infos[0])}, got {value!r}{near}"


def _fields(root: type[Group], path: tuple[str, ...]) -> list[FieldInfo]:
    """Returns the fields that a path may mean, one of each alternative that has it."""
    found = [kind for kind in alternatives(root, path[:-1]) if path[-1] in kind.model_fields]
    return [kind.model_fields[path[-1]] for kind in found]


def _unknown(root: type[Group], path: tuple[str, ...], known: Iterable[str]) -> str:
    """Returns the sentence for a key that does not exist, or not for the alternative chosen."""
    own = [kind for kind in alternatives(root, path[:-1]) if path[-1] in kind.model_fields]
    key, group = ".".join(path), ".".join(path[:-1])
    if own:
        kinds = [value for each in own for value in _literals(each.model_fields["kind"].annotation)]
        return f"{key} is read only with {group}.kind {' or '.join(kinds)}"
    return f"there is no key {key!r}{nearest_key(key, known)}"
