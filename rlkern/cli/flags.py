# SPDX-License-Identifier: Apache-2.0
"""Settings as flags: one per key, in groups; nothing here imports torch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

from rlkern.runs.errors import UserError
from rlkern.runs.settings.group import Group
from rlkern.runs.settings.layers import classes, optional
from rlkern.runs.settings.message import expected, nearest_key

NULL = "null"


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are a UserError, and whose flags are never abbreviated.

    free   mappings whose keys are not known: each takes flags such as --coefficients.clip_low 0.1
    inside  names that are known below them, for "did you mean"
    """

    def __init__(
        self, *, free: Sequence[str] = (), inside: Sequence[str] = (), **options: Any
    ) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)
        self.free, self.inside = free, inside

    def error(self, message: str) -> NoReturn:
        """Raises UserError with the message."""
        raise UserError(message)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


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


def given(parser: Parser, words: Sequence[str]) -> dict[str, Any] | None:
    """Returns the flags that somebody gave; None after help. Raises UserError for unknown ones."""
    words = [underscored(word) for word in words]
    if not {"-h", "--help"}.isdisjoint(words):
        parser.print_help(sys.stdout)
        return None
    words, free = _without_free_keys(words, parser.free)
    found, unknown = parser.parse_known_args(words)
    if unknown:
        flag = unknown[0]
        raise UserError(f"there is no flag {flag.partition('=')[0]}{_near(parser, flag)}")
    values = vars(found)
    for owner, own in free.items():
        values[owner] = {**_mapping(owner, values.get(owner, "{}")), **own}
    for owner in values.keys() & set(parser.free) - free.keys():
        values[owner] = _mapping(owner, values[owner])
    return values


def _near(parser: Parser, word: str) -> str:
    """Returns "; did you mean --…" with the flag that was meant, nothing if none is similar."""
    known = list(dict.fromkeys(re.findall(r"--([\w.]+)", parser.format_help())))
    known += parser.inside
    near = nearest_key(word.partition("=")[0].removeprefix("--"), known)
    return near.replace("mean ", "mean --").replace(" or ", " or --")


def _mapping(key: str, text: str) -> Any:
    """Returns the mapping that a text is in YAML; Raises UserError for anything else."""
    found = typed(text)
    if not isinstance(found, dict):
        raise UserError(f"flags: {key} must be key: value pairs in braces, got {text!r}")
    return found


def _without_free_keys(
    words: Sequence[str], free: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """Returns the other words, and the flags of free mappings: --coefficients.clip_low 0.1.

    >>> _without_free_keys(["--coefficients.beta", "0.1", "--seed", "3"], ["coefficients"])
    (['--seed', '3'], {'coefficients': {'beta': 0.1}})
    """
    rest, found, place = list[str](), dict[str, Any](), 0
    while place < len(words):
        word = words[place]
        flag, equals, value = word.partition("=")
        owner = next((k for k in free if flag.startswith(f"--{k}.")), None)
        place += 1
        if owner is None:
            rest.append(word)
            continue
        if not equals:
            if place == len(words):
                raise UserError(f"argument {flag}: expected one argument")
            value, place = words[place], place + 1
        found.setdefault(owner, {})[flag.removeprefix(f"--{owner}.")] = typed(value)
    return rest, found


def typed(text: str) -> Any:
    """Returns what a text means in YAML: a number, true, a list, or the text itself."""
    import yaml

    from rlkern.runs.settings.yaml_file import parsed

    try:
        return parsed(text)
    except yaml.YAMLError:
        return text


def underscored(argument: str) -> str:
    """Returns a flag with underscores, so that --top-k and --top_k are the same.

    >>> underscored("--rollout.top-k=3")
    '--rollout.top_k=3'
    """
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value
