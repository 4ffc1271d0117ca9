# SPDX-License-Identifier: Apache-2.0
"""Settings as people give them: mappings over mappings, each with the place it comes from."""

from __future__ import annotations

import types
import typing
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic.fields import FieldInfo

from rlkern.runs.errors import UserError
from rlkern.runs.settings.group import Group

_NULL, _NULLS = "null", ("null", "none", "None", "~")


@dataclass(frozen=True)
class Layer:
    """Some keys and their values.

    source  where they come from, as an error message names it: a file, a stage or a flag
    values  a mapping of keys; a group is a mapping in it, or its dotted keys, or its main key alone
    shared  the keys are for several runs, each of which takes those that it reads
    """

    source: str
    values: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False


def classes(annotation: Any) -> list[type[Group]]:
    """Returns the groups that a field may hold, none for a plain value.

    >>> from rlkern.trainer.settings import Settings
    >>> [kind.__name__ for kind in classes(Settings.model_fields["groups"].annotation)]
    ['EveryGroup', 'DynamicGroups', 'DuplicateGroups']
    """
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Group) else []
    if typing.get_origin(annotation) is typing.Annotated:
        return classes(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in classes(part)]
    return []


def optional(field_info: FieldInfo) -> bool:
    """Returns whether a field may be null."""
    return type(None) in typing.get_args(field_info.annotation)


def leaves(group: type[Group], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields (dotted key, field) of every key below a group; a key of two alternatives once."""
    seen = set()
    for name, info in group.model_fields.items():
        below = classes(info.annotation)
        found = [(f"{prefix}{name}", info)] if not below else []
        for kind in below:
            found += leaves(kind, f"{prefix}{name}.")
        for key, leaf in found:
            if key not in seen:
                seen.add(key)
                yield key, leaf


def alternatives(root: type[Group], path: tuple[str, ...]) -> list[type[Group]]:
    """Returns the groups that may stand at a path below another, none where there is no group."""
    kinds = [root]
    for name in path:
        infos = [kind.model_fields[name] for kind in kinds if name in kind.model_fields]
        kinds = [kind for info in infos[:1] for kind in classes(info.annotation)]
    return kinds


def is_key(root: type[Group], path: tuple[str, ...]) -> bool:
    """Returns whether some alternative of a group has the key at a path."""
    return bool(_infos(root, path))


def normalized(
    root: type[Group], layer: Layer, values: Mapping[str, Any] | None = None, path: tuple = ()
) -> dict:
    """Returns a layer's values as nested mappings: dotted keys taken apart, a plain value of a
    group under its main key, null texts as None. Raises UserError for a key that is there twice,
    in two ways of writing it.
    """
    found: dict[str, Any] = {}
    for name, value in (layer.values if values is None else values).items():
        if not isinstance(name, str):
            raise UserError(f"{layer.source}: a key must be text, got {name!r}")
        first, dot, rest = name.partition(".")
        if not first or (dot and not rest):
            raise UserError(f"{layer.source}: there is no key {'.'.join((*path, name))!r}")
        inside = {rest: value} if rest else value
        here = (*path, first)
        kinds = alternatives(root, here)
        if isinstance(inside, str) and inside in (_NULLS if _may_be_null(root, here) else (_NULL,)):
            inside = None
        if not _is_text(inside):
            raise UserError(
                f"{layer.source}: {'.'.join(here)} must be readable text, got {value!r}"
            )
        if kinds and not isinstance(inside, Mapping) and inside is not None:
            if kinds[0].main is None:
                keys = ", ".join(kinds[0].model_fields)
                where = ".".join(here)
                raise UserError(
                    f"{layer.source}: {where} is a group of keys ({keys}), got {inside!r}"
                )
            inside = {kinds[0].main: inside}
        if kinds and inside is not None:
            inside = normalized(root, layer, inside, here)
        found[first] = _beside(found[first], inside, layer, here) if first in found else inside
    return found


def _is_text(value: Any) -> bool:
    """Returns whether a text can be written to a file and name one; True for any other value."""
    if not isinstance(value, str):
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _beside(one: Any, other: Any, layer: Layer, path: tuple[str, ...]) -> Any:
    """Returns two mappings of one layer as one; Raises UserError for a key of both."""
    if None in (one, other) and _is_nothing(one) and _is_nothing(other):
        return None
    if not isinstance(one, dict) or not isinstance(other, dict):
        values = " and ".join(_NULL if each is None else repr(each) for each in (one, other))
        raise UserError(f"{layer.source}: {'.'.join(path)} is given twice, {values}; leave one out")
    both = {
        name: _beside(one[name], value, layer, (*path, name)) if name in one else value
        for name, value in other.items()
    }
    return {**one, **both}


def _is_nothing(value: Any) -> bool:
    """Returns whether a value is null, or a mapping of nothing else."""
    return value is None or (isinstance(value, dict) and all(map(_is_nothing, value.values())))


def given_of(root: type[Group], values: dict[str, Any], path: tuple[str, ...] = ()) -> dict:
    """Returns merged values without those that are null: they are not given, unless null switches
    a group off or the key does not exist.

    >>> from rlkern.trainer.settings import Settings
    >>> given_of(Settings, {"steps": None, "lora": None, "batch": {"epochs": None}, "x": None})
    {'lora': None, 'batch': {}, 'x': None}
    """
    found = {}
    for name, value in values.items():
        here = (*path, name)
        if isinstance(value, dict) and alternatives(root, here):
            value = given_of(root, value, here)
        if value is not None or not is_key(root, here) or _may_be_off(root, here):
            found[name] = value
    return found


def _infos(root: type[Group], path: tuple[str, ...]) -> list[FieldInfo]:
    """Returns the fields that a path may mean, one of each alternative that has it."""
    parents = alternatives(root, path[:-1])
    return [kind.model_fields[path[-1]] for kind in parents if path[-1] in kind.model_fields]


def _may_be_null(root: type[Group], path: tuple[str, ...]) -> bool:
    return any(map(optional, _infos(root, path)))


def _may_be_off(root: type[Group], path: tuple[str, ...]) -> bool:
    return any(optional(info) and bool(classes(info.annotation)) for info in _infos(root, path))


def _merged(under: Any, over: Any) -> Any:
    """Returns a value laid over another one: mappings key by key, anything else as a whole."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return {**under, **{name: _merged(under.get(name), value) for name, value in over.items()}}


def laid_over(*values: dict[str, Any]) -> dict[str, Any]:
    """Returns nested mappings as one, later ones over earlier ones.

    >>> laid_over({"batch": {"epochs": 1, "prompts": 2}}, {"batch": {"epochs": 4}})
    {'batch': {'epochs': 4, 'prompts': 2}}
    """
    found: dict[str, Any] = {}
    for each in values:
        found = _merged(found, each)
    return found


def dotted(
    root: type[Group], values: Mapping[str, Any], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns nested values by their dotted keys; free mappings, such as coefficients, stay whole.

    >>> from rlkern.trainer.settings import Settings
    >>> values = {"steps": 3, "batch": {"epochs": 1}, "coefficients": {"clip_low": 0.1}}
    >>> dotted(Settings, values)
    {'steps': 3, 'batch.epochs': 1, 'coefficients': {'clip_low': 0.1}}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        here = (*path, name)
        if isinstance(value, Mapping) and alternatives(root, here):
            found.update(dotted(root, value, here))
        else:
            found[".".join(here)] = value
    return found


def first_difference(
    mine: Mapping[str, Any], others: Mapping[str, Any], free: Container[str]
) -> tuple[str, Any, Any] | None:
    """Returns (key, value, other value) of the first key that is not free and differs, or None.

    >>> first_difference({"seed": 0, "name": "a"}, {"seed": 1, "name": "b"}, {"name"})
    ('seed', 0, 1)
    """
    for key in dict.fromkeys((*mine, *others)):
        if key not in free and mine.get(key) != others.get(key):
            return key, mine.get(key), others.get(key)
    return None


def source_of(path: tuple[str, ...], layers: list[tuple[Layer, dict[str, Any]]]) -> Layer | None:
    """Returns the last layer that sets the value at a path, with its values nested beside it."""
    for layer, values in reversed(layers):
        inside: Any = values
        for name in path:
            inside = inside.get(name, layers) if isinstance(inside, Mapping) else layers
        if inside is not layers:
            return layer
    return None


def placed(sentence: str, path: tuple[str, ...], layers: list[tuple[Layer, dict]]) -> str:
    """Returns a sentence about the value at a path behind the name of the layer that sets it."""
    # The source of a key that is missing is that of the keys beside it.
    every = (source_of(path[:end], layers) for end in range(len(path), 0, -1))
    layer = next((each for each in every if each is not None), None)
    return f"{layer.source}: {sentence}" if layer is not None and layer.source else sentence
