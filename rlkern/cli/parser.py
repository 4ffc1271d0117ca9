# SPDX-License-Identifier: Apache-2.0
"""A parser of flags whose mistakes are sentences; nothing here imports what a plain installation
has not."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rlkern.runs.errors import UserError
from rlkern.runs.settings.names import nearest_key

_NEGATIVE = re.compile(r"-(\d[\d_]*\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|inf|nan)$", re.I)


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are a UserError, and whose flags are neither abbreviated nor given
    twice.

    free   mappings whose keys are not known: each takes flags such as --coefficients.clip_low 0.1
    inside  names that are known below them, for "did you mean"
    """

    def __init__(
        self, *, free: Sequence[str] = (), inside: Sequence[str] = (), **options: Any
    ) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)
        self.free, self.inside = free, inside
        # Python's own does not take -1e-3 for a number, but for a flag.
        self._negative_number_matcher = _NEGATIVE

    def error(self, message: str) -> NoReturn:
        """Raises UserError with the message."""
        flag, _, what = message.removeprefix("argument ").partition(": ")
        if what == "expected one argument":
            message = f"{message}; one that begins with - is written {flag}=-…"
        raise UserError(message)

    def same(self, flag: str) -> str:
        """Returns what a flag sets, which is its name for one that is not known."""
        action = self._option_string_actions.get(flag)
        return flag if action is None else action.dest


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def given(parser: Parser, words: Sequence[str]) -> dict[str, Any] | None:
    """Returns the flags that somebody gave; None after help. Raises UserError for unknown ones."""
    end = list(words).index("--") if "--" in words else len(words)
    words = [*map(underscored, words[:end]), *words[end:]]
    if not {"-h", "--help"}.isdisjoint(words):
        parser.print_help(sys.stdout)
        return None
    _check_once(parser, words[:end])
    words, free = _without_free_keys(words, parser.free)
    found, unknown = parser.parse_known_args(words)
    if unknown:
        flag = unknown[0]
        raise UserError(f"there is no flag {flag.partition('=')[0]}{_near(parser, flag)}")
    values = vars(found)
    for owner in values.keys() & set(parser.free):
        values[owner] = _mapping(owner, values[owner])
    for owner, own in free.items():
        if twice := next((name for name in own if name in values.get(owner, ())), None):
            raise UserError(f"flags: {owner}.{twice} is given twice; leave one out")
        values[owner] = {**values.get(owner, {}), **own}
    return values


def _check_once(parser: Parser, words: Sequence[str]) -> None:
    """Raises UserError for a flag that is given twice, of which one would be ignored."""
    seen: dict[str, str] = {}
    for word in words:
        flag = word.partition("=")[0]
        key = parser.same(flag)
        if not flag.startswith("--"):
            continue
        if seen.get(key) == flag:
            raise UserError(f"{flag} is given twice; leave one out")
        if key in seen:
            raise UserError(f"{seen[key]} and {flag} are the same; leave one out")
        seen[key] = flag


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
        if flag == f"--{owner}.":
            raise UserError(f"there is no flag {flag}")
        if not equals:
            if place == len(words) or words[place].startswith("--"):
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
