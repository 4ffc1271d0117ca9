# SPDX-License-Identifier: Apache-2.0
"""Tasks of reasoning-gym: its families, with solved examples and a text around a question."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from typing import Any

from rlkern.runs.errors import UserError
from rlkern.runs.settings.names import nearest
from rlkern.trainer.tasks.task import Item, Task, first_line

ARITHMETIC = {
    "min_terms": 2,
    "max_terms": 2,
    "min_digits": 1,
    "max_digits": 2,
    "operators": ["+"],
    "allow_parentheses": False,
    "allow_negation": False,
}
# Training, held-out and example items come from streams of their own.
_STREAM_SIZE = 1_000_000_000
# Some families make all of their entries, or choose all of their kinds, when they are created.
_LOT = 1000


class _Stream:
    """The entries of a family from a seed on, without end, in datasets of one lot each.

    Entry i of a seed is entry 0 of the seed i further on, so the next lot begins where one ends.
    """

    def __init__(self, made: Callable[[int], Any], seed: int) -> None:
        self._first, self._seed = made(seed), seed
        self._made = functools.lru_cache(maxsize=1)(made)

    def __getitem__(self, place: int) -> dict:
        begin, within = place - place % _LOT, place % _LOT
        return (self._made(self._seed + begin) if begin else self._first)[within]

    def score(self, text: str, entry: dict) -> float:
        """Returns what the family gives an answer: 1 if it is right."""
        return self._first.score_answer(text, entry)


def reasoning(
    name: str, family: str, settings: dict, *, seed: int, eval_items: int, shots: int, template: str
) -> Task:
    """Returns a reasoning-gym family as a task whose held-out questions are never trained on."""
    made = functools.partial(_dataset, name, family, settings)
    stream, asked, shown = (_Stream(made, (3 * seed + part) * _STREAM_SIZE) for part in range(3))
    # Neither the shots nor the number of held-out items changes which items come first.
    held = _questions(asked, eval_items, name, barred=set())
    held_keys = {question_key(entry["question"]) for entry in held}
    examples = _questions(shown, shots, name, barred=held_keys)
    head = "".join(render(template, e) + f"{e['answer']}\n" for e in examples)

    def make(entry: dict) -> Item:
        columns = {"question": entry["question"], "entry": entry}
        key = question_key(entry["question"])
        return Item(head + render(template, entry), str(entry["answer"]), columns, key)

    return Task(
        name=name,
        item=lambda position: make(stream[position]),
        held_out=[make(entry) for entry in held],
        score=lambda text, item: float(
            stream.score(first_line(text), item.columns["entry"]) >= 1.0
        ),
        stop="\n",
        max_new_tokens=4 if family == "basic_arithmetic" else 16,
        alphabet=string.printable[:97],  # to the newline
        shown=frozenset(question_key(entry["question"]) for entry in examples),
    )


def render(template: str, entry: dict) -> str:
    """Returns the text around one question; {question} and the family's own metadata may be named.

    >>> render("{question} A: ", {"question": "What is 1 + 2?", "metadata": {}})
    'What is 1 + 2? A: '
    """
    fields = {**entry["metadata"], "question": entry["question"]}
    try:
        return template.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        known = ", ".join(sorted(fields))
        raise UserError(
            f"data.template must name only {known}, got {template!r}: {error}"
        ) from error


def question_key(question: str) -> Any:
    """Returns what makes a question the same one: its text, or for a sum of two terms its unordered
    operands.

    >>> question_key("Calculate 3 + 14.") == question_key("Calculate 14 + 3.")
    True
    """
    words = question.removesuffix(".").split()
    if len(words) == 4 and words[0] == "Calculate" and words[2] in "+*":
        return (words[2], *sorted((words[1], words[3])))
    return question


def _dataset(name: str, family: str, settings: dict, seed: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(f"task {name} needs the package reasoning-gym: {error}") from error
    if family not in DATASETS:
        known = ("addition", "guess", "arithmetic", *DATASETS)
        raise UserError(
            f"there is no task {name!r}: use addition, guess, arithmetic or a reasoning-gym family"
            f"{nearest(name, known)}"
        )
    try:
        return reasoning_gym.create_dataset(family, size=_LOT, seed=seed, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"task {name}: data.options {settings} do not fit: {error}") from error


def _questions(stream: _Stream, count: int, name: str, *, barred: set) -> list[dict]:
    """Returns `count` entries with different keys, none of them barred."""
    seen, entries = set(barred), list[dict]()
    for index in range(50 * count + 100):
        if len(entries) == count:
            return entries
        entry = stream[index]
        key = question_key(entry["question"])
        if key not in seen:
            seen.add(key)
            entries.append(entry)
    raise UserError(
        f"task {name}: only {len(entries)} different questions found, {count} asked;"
        " lower eval.items"
    )
