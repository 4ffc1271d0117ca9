# SPDX-License-Identifier: Apache-2.0
"""What a person's reward function is given, by the names of its parameters.

f(prompts, completions, **columns)                               lists, TRL's
f(data_source, solution_str, ground_truth, extra_info)           one answer, verl's
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlkern.runs.errors import RewardError, UserError
from rlkern.trainer.data.chat import ASSISTANT, Chat
from rlkern.trainer.reward.asking import is_async, reward_name
from rlkern.trainer.tasks.task import Item

# What every function may ask for, whatever the columns of its items are.
ALWAYS = ("prompts", "completions", "prompt_ids", "completion_ids", "answer", "item")
_VERL, _VERL_MAY = ("solution_str", "ground_truth"), ("data_source", "extra_info")
_READS_TEXT = "reads_text"


def reads_text(function: Callable) -> Callable:
    """Returns the function, marked as one that is given texts, also where a prompt is messages."""
    vars(function)[_READS_TEXT] = True
    return function


def wants_text(function: Callable) -> bool:
    """Returns whether a function, or what asks it or is asked by it, is so marked."""
    found: Any = function
    while found is not None:
        if getattr(found, _READS_TEXT, False):
            return True
        found = getattr(found, "__wrapped__", None)
    return False


def as_messages(
    items: list[Item], prompts: list[str], completions: list[str], transcript: list | None
) -> tuple[list, list]:
    """Returns prompts and completions as TRL gives them: messages where the prompt is messages."""
    asked, said = list[Any](), list[Any]()
    for place, (item, prompt, text) in enumerate(zip(items, prompts, completions, strict=True)):
        talks = isinstance(item.asked, Chat) and item.asked.text is None
        spoken = transcript[place] if transcript is not None else None
        asked.append(list(item.asked.messages) if talks else prompt)  # type: ignore[union-attr]
        alone = [{"role": ASSISTANT, "content": text}]
        said.append((spoken or alone) if talks else text)
    return asked, said


def parameters(function: Callable) -> Mapping[str, inspect.Parameter] | None:
    """Returns the parameters of a function, None where they cannot be known."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def wanted(function: Callable, columns: dict[str, list]) -> dict[str, list]:
    """Returns the columns a function takes: all of them if it has **columns."""
    known = parameters(function)
    if known is None or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return columns
    return {name: values for name, values in columns.items() if name in known}


def check_parameters(function: Callable, name: str, columns: Iterable[str], asked: str) -> None:
    """Raises UserError for a function that needs what nobody gives it, or takes no answers."""
    known = parameters(function)
    if known is None:
        return
    keyword = any(p.kind is p.VAR_KEYWORD for p in known.values())
    lists = {*ALWAYS, *columns}
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for each in known.values():
        if each.kind is each.POSITIONAL_ONLY:
            raise UserError(
                f"reward {name!r} must take its arguments by name, and {each.name!r} cannot be"
                " given so; leave the / out"
            )
        if each.kind in plain and each.default is each.empty and each.name not in lists:
            raise UserError(
                f"reward {name!r} needs the argument {each.name!r}, which nothing gives it: there"
                f" are {', '.join(ALWAYS)} and the columns of {asked}"
                f" ({', '.join(sorted(columns)) or 'none'})"
            )
    if not keyword and not {"prompts", "completions"} <= set(known):
        raise UserError(
            f"reward {name!r} must take prompts and completions, which are given by name, or verl's"
            f" {', '.join((*_VERL, *_VERL_MAY))}; it takes {', '.join(known) or 'nothing'}"
        )


def _taken(function: Callable) -> set[str] | None:
    """Returns which of verl's arguments a function takes, None for one of another signature;
    Raises UserError for one that needs others, too."""
    known, offered = parameters(function), {*_VERL, *_VERL_MAY}
    if known is None or not known.keys() >= set(_VERL):
        return None
    needs = [n for n, p in known.items() if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    needs += [n for n, p in known.items() if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    if other := sorted({*needs} - offered):
        raise UserError(
            f"reward function {reward_name(function)} has verl's signature and needs {other[0]!r},"
            f" which nothing gives it: there are {', '.join((*_VERL_MAY, *_VERL))}"
        )
    every = any(p.kind is p.VAR_KEYWORD for p in known.values())
    return offered if every else offered & known.keys()


def of_verl(function: Callable, source: str) -> Callable:
    """Returns a function of verl's signature as one of lists, asked once about each answer; any
    other function as it is.

    source is the data_source of items that have no such column.
    """
    taken = _taken(function)
    if taken is None:
        return function

    def given(text: str, item: Item) -> dict[str, Any]:
        columns = item.columns
        model = columns.get("reward_model")
        truth = model.get("ground_truth") if isinstance(model, Mapping) else None
        values = {
            "data_source": columns.get("data_source", source),
            "solution_str": text,
            "ground_truth": item.answer if truth is None else truth,
            "extra_info": columns.get("extra_info") or {},
        }
        return {name: value for name, value in values.items() if name in taken}

    async def awaited(
        prompts: list[str], completions: list[str], item: list[Item]
    ) -> list[float | None]:
        both = zip(completions, item, strict=True)
        return [_score(await function(**given(*one)), function) for one in both]

    def asked(prompts: list[str], completions: list[str], item: list[Item]) -> list[float | None]:
        both = zip(completions, item, strict=True)
        return [_score(function(**given(*one)), function) for one in both]

    scores: Any = awaited if is_async(function) else asked
    # By it, names, files and lines are the function's; parameters are the list's.
    scores.__signature__ = inspect.signature(scores)
    scores.__wrapped__ = function
    scores.__name__ = reward_name(function)
    return reads_text(scores)


def _score(found: Any, function: Callable) -> Any:
    if not isinstance(found, Mapping):
        return found
    if "score" not in found:
        raise RewardError(
            f"reward function {reward_name(function)} must return a number, None or a mapping with"
            f" 'score', got one with {', '.join(map(repr, found)) or 'nothing'}"
        )
    return found["score"]
