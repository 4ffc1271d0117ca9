# SPDX-License-Identifier: Apache-2.0
"""Tasks: an endless stream of training items, and held-out items that never occur in it."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlkern.trainer.errors import UserError

# Give up when this many stream items in a row were held out: the family has no other items.
_MOST_SKIPS = 10_000


@dataclass(frozen=True)
class Item:
    """One question: the text the model continues, the right answer, and what else rewards
    may read."""

    prompt: str
    answer: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task: item i of the stream, its identity, the held-out items, the scorer and the text
    format.

    `item(i)` depends on i and the seed alone, so the position in the data is one integer. Where an
    environment answers, reply(item, text after the prompt so far) is its next message, None ends
    the conversation, and max_new_tokens is that of a message. barred are the keys of items that
    are not trained on beside the held-out ones.
    """

    name: str
    item: Callable[[int], Item]
    key: Callable[[Item], Any]
    held_out: list[Item]
    score: Callable[[str, Item], float]
    stop: str
    max_new_tokens: int
    alphabet: str
    reply: Callable[[Item, str], str | None] | None = None
    max_turns: int = 1
    barred: frozenset = frozenset()

    def next_items(self, position: int, count: int) -> tuple[list[Item], int]:
        """Returns the next training items from `position` on, and the position after them."""
        barred = self.barred | {self.key(item) for item in self.held_out}
        items: list[Item] = []
        skipped = 0
        while len(items) < count:
            item = self.item(position)
            position += 1
            if self.key(item) not in barred:
                items.append(item)
                skipped = 0
            elif (skipped := skipped + 1) >= _MOST_SKIPS:
                raise UserError(f"task {self.name}: every item is held out; lower eval_items")
        return items, position


def make_task(
    name: str,
    *,
    seed: int,
    eval_items: int,
    shots: int | None = None,
    template: str | None = None,
    options: dict | None = None,
) -> Task:
    """Returns the task called `name`; raises one sentence when there is none."""
    from rlkern.trainer.tasks.guess import guess

    made = {"addition": addition, "guess": guess}
    if name in made:
        if shots or template or options:
            raise UserError(f"task {name} takes no shots, prompt_template or task_options")
        return made[name](seed=seed, eval_items=eval_items)
    sums = name == "arithmetic"
    return reasoning(
        name,
        "basic_arithmetic" if sums else name,
        {**(_ARITHMETIC if sums else {}), **(options or {})},
        seed=seed,
        eval_items=eval_items,
        shots=int(sums) if shots is None else shots,
        template=template or ("{expression} = " if sums else "Q: {question}\nA: "),
    )


def addition(*, seed: int, eval_items: int) -> Task:
    """Returns two-digit addition in characters, `12+34=` to `046`.

    Operands and sum are zero-padded, which a tiny model learns many times faster. A pair is held
    out in both orders.
    """
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(pairs)
    if eval_items > len(pairs) // 2:
        raise UserError(
            f"task addition: eval_items must be at most {len(pairs) // 2}, got {eval_items}"
        )
    items = [Item(f"{a:02d}+{b:02d}=", f"{a + b:03d}") for a, b in pairs]

    def key(item: Item) -> tuple[str, ...]:
        return tuple(sorted(item.prompt.rstrip("=").split("+")))

    return Task(
        name="addition",
        item=epochs(items[eval_items:], seed),
        key=key,
        held_out=items[:eval_items],
        score=lambda text, item: float(first_line(text) == item.answer),
        stop="",
        max_new_tokens=4,
        alphabet="0123456789+=",
    )


def epochs(items: list[Item], seed: int) -> Callable[[int], Item]:
    """Returns the item at a position of an endless stream that visits all items in a new order each
    epoch.
    """
    orders: dict[int, list[int]] = {}

    def item(position: int) -> Item:
        epoch, index = divmod(position, len(items))
        if epoch not in orders:
            orders.clear()
            orders[epoch] = random.Random(f"{seed}/{epoch}").sample(range(len(items)), len(items))
        return items[orders[epoch][index]]

    return item


_ARITHMETIC = {
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


def reasoning(
    name: str, family: str, settings: dict, *, seed: int, eval_items: int, shots: int, template: str
) -> Task:
    """Returns a reasoning-gym family as a task whose held-out questions are never trained on."""
    # Entry i of a seed is entry 0 of the seed i further on, so streams begin far apart.
    stream, asked, shown = (
        _dataset(name, family, settings, (3 * seed + part) * _STREAM_SIZE) for part in range(3)
    )
    # Neither the shots nor the number of held-out items changes which items come first.
    held = _questions(asked, eval_items, name, barred=set())
    held_keys = {question_key(entry["question"]) for entry in held}
    examples = _questions(shown, shots, name, barred=held_keys)
    head = "".join(render(template, e) + f"{e['answer']}\n" for e in examples)

    def make(entry: dict) -> Item:
        columns = {"question": entry["question"], "entry": entry}
        return Item(head + render(template, entry), str(entry["answer"]), columns)

    return Task(
        name=name,
        item=lambda position: make(stream[position]),
        key=lambda item: question_key(item.columns["question"]),
        held_out=[make(entry) for entry in held],
        score=lambda text, item: float(
            stream.score_answer(first_line(text), item.columns["entry"]) >= 1.0
        ),
        stop="\n",
        max_new_tokens=4 if family == "basic_arithmetic" else 16,
        alphabet=string.printable[:97],  # to the newline
        barred=frozenset(question_key(entry["question"]) for entry in examples),
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
            f"prompt_template must name only {known}, got {template!r}: {error}"
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


def first_line(text: str) -> str:
    """Returns the first line of an answer without the blanks around it: what a verifier may read.

    A family's own scorer gives partial credit to text around the right answer.
    """
    return text.strip().split("\n", 1)[0].strip()


def _dataset(name: str, family: str, settings: dict, seed: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(f"task {name} needs the package reasoning-gym: {error}") from error
    if family not in DATASETS:
        raise UserError(
            f"there is no task {name!r}: use addition, guess, arithmetic or a reasoning-gym family"
        )
    try:
        return reasoning_gym.create_dataset(family, size=_STREAM_SIZE, seed=seed, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"task {name}: task_options {settings} do not fit: {error}") from error


def _questions(dataset: Any, count: int, name: str, *, barred: set) -> list[dict]:
    """Returns `count` entries with different keys, none of them barred."""
    seen, entries = set(barred), list[dict]()
    for index in range(50 * count + 100):
        if len(entries) == count:
            return entries
        entry = dataset[index]
        key = question_key(entry["question"])
        if key not in seen:
            seen.add(key)
            entries.append(entry)
    raise UserError(
        f"task {name}: only {len(entries)} different questions found, {count} asked;"
        " lower eval_items"
    )
