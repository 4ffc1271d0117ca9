# SPDX-License-Identifier: Apache-2.0
"""Rewards by a name alone: math, exact, contains, json, regex:PATTERN.

Each gives 1 to an answer that is right, and 0 to any other.
"""

from __future__ import annotations

import json as json_format
import logging
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from rlkern.runs.errors import UserError
from rlkern.trainer.tasks.task import Item, same_text

Grader = Callable[..., "list[float | None]"]
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", re.DOTALL)


def exact(prompts: list[str], completions: list[str], item: list[Item]) -> list[float | None]:
    """Returns 1 where an answer is the right one but for the blanks around both.

    >>> exact(["1+1="], [" 2 "], [Item("1+1=", "2")])
    [1.0]
    """
    return [same_text(text, one) for text, one in zip(completions, item, strict=True)]


def contains(prompts: list[str], completions: list[str], item: list[Item]) -> list[float | None]:
    """Returns 1 where an answer holds the right one.

    >>> contains(["1+1="], ["It is 2."], [Item("1+1=", "2")])
    [1.0]
    """
    both = zip(completions, item, strict=True)
    return [float(one.answer.strip() in text) for text, one in both]


def json(prompts: list[str], completions: list[str]) -> list[float | None]:
    """Returns 1 where an answer is a JSON object or list, alone or in a fence of code.

    >>> json([""] * 3, ['{"a": 1}', "[1,", "3"])
    [1.0, 0.0, 0.0]
    """
    return [float(_is_json(text)) for text in completions]


def _is_json(text: str) -> bool:
    fenced = _FENCE.fullmatch(text)
    try:
        found = json_format.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, (dict, list))


def math(prompts: list[str], completions: list[str], item: list[Item]) -> list[float | None]:
    r"""Returns 1 where an answer's last number, formula or \boxed{} equals the right one, by
    math-verify; None where the right one is no mathematics.
    """
    return [_same_math(text, one.answer) for text, one in zip(completions, item, strict=True)]


def _same_math(text: str, right: str) -> float | None:
    library, gold = _math_verify(), _gold(right)
    if not gold:
        return None
    # Its own time limit is a signal, which only a main thread may set; reward.timeout is another.
    found = library.parse(text, parsing_timeout=None)
    return float(library.verify(list(gold), found, timeout_seconds=None))


@lru_cache(maxsize=4096)
def _gold(right: str) -> tuple[Any, ...]:
    parse = _math_verify().parse
    found = parse(right, parsing_timeout=None) or parse(f"${right}$", parsing_timeout=None)
    return tuple(found)


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise UserError(
            f"reward math needs the package math-verify: pip install rlkern[train] ({error})"
        ) from error
    # It warns at every call that it sets no time limit.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


def _regex(pattern: str) -> Grader:
    """Returns the reward that is 1 where a pattern is found in an answer."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"reward regex:{pattern} must hold a pattern: {error}") from error

    def regex(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [float(compiled.search(text) is not None) for text in completions]

    return regex


_NAMED: dict[str, Grader] = {each.__name__: each for each in (math, exact, contains, json)}
NAMES = (*_NAMED, "regex:PATTERN")


def named(name: str) -> Grader | None:
    """Returns the reward of a name, None if there is none; Raises UserError for a pattern that is
    none, or without math-verify."""
    if name.startswith("regex:"):
        return _regex(name.removeprefix("regex:"))
    if name == math.__name__:
        _math_verify()
    return _NAMED.get(name)
