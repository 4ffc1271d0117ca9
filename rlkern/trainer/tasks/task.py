# SPDX-License-Identifier: Apache-2.0
"""Tasks: an endless stream of training items, and held-out items that never occur in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import Answer, Prompt, shown_answer
from rlkern.trainer.data.examples import Example
from rlkern.trainer.tasks.conversation import Conversation

# Give up when this many stream items in a row were held out: the family has no other items.
_MOST_SKIPS = 10_000


@dataclass(frozen=True)
class Item:
    """One question: the text that the model continues, the right answer, what else rewards may
    read, what makes it the same question as another one, by default its prompt, and the row of a
    file that it is, which may hold the prompt as messages."""

    prompt: str
    answer: str
    columns: dict[str, Any] = field(default_factory=dict)
    key: Any = None
    row: Example | None = None

    def __post_init__(self) -> None:
        if self.key is None:
            object.__setattr__(self, "key", self.prompt)

    @property
    def asked(self) -> Prompt | None:
        """What the model goes on with; None for plain text of a file, which has no prompt."""
        return self.prompt if self.row is None else self.row.prompt

    @property
    def right(self) -> Answer:
        """What a model that learns from right answers should say."""
        given = None if self.row is None else self.row.target
        return self.answer if given is None else given


@dataclass(frozen=True)
class Task:
    """A task: item i of the stream, the held-out items, the scorer and the text format.

    `item(i)` depends only on i and the seed, so the position in the data is one integer. Where an
    environment answers, reply(item, text after the prompt so far) is its next message, None ends
    the conversation, and max_new_tokens is that of a message; where it speaks in messages, has
    tools or a state, begin(item) makes the other side of one conversation. shown are the keys of
    items that are in prompts as examples, and therefore not trained on. A file has its training
    items in rows, says in notes what became of its rows, keeps so many last tokens of a prompt, all
    if keep is 0, and is a chat if its prompts can only be messages.
    """

    name: str
    item: Callable[[int], Item]
    held_out: list[Item]
    score: Callable[[str, Item], float]
    stop: str
    max_new_tokens: int
    alphabet: str
    reply: Callable[[Item, str], str | None] | None = None
    max_turns: int = 1
    begin: Callable[[Item], Conversation] | None = None
    shown: frozenset = frozenset()
    rows: tuple[Item, ...] | None = None
    notes: tuple[str, ...] = ()
    keep: int = 0
    chat: bool = False

    @cached_property
    def barred(self) -> frozenset:
        """The keys of items that are not trained on: held out, or shown as examples."""
        return self.shown | {item.key for item in self.held_out}

    def next_items(self, position: int, count: int) -> tuple[list[Item], int]:
        """Returns the next training items from `position` on, and the position after them."""
        items: list[Item] = []
        skipped = 0
        while len(items) < count:
            item = self.item(position)
            position += 1
            if item.key not in self.barred:
                items.append(item)
                skipped = 0
            elif (skipped := skipped + 1) >= _MOST_SKIPS:
                raise UserError(f"task {self.name}: every item is held out; lower eval.items")
        return items, position


def first_prompts(task: Task) -> list[Prompt]:
    """Returns a few held-out prompts; text of a file has none, and its beginning is one."""
    return [item.prompt or shown_answer(item.right)[:64] for item in task.held_out[:4]]


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


def first_line(text: str) -> str:
    """Returns the first line of an answer without the blanks around it: what a verifier may read.

    A family's own scorer gives partial credit to text around the right answer.
    """
    return text.strip().split("\n", 1)[0].strip()


def same_text(text: str, item: Item) -> float:
    """Returns 1 if an answer is the right one but for the blanks around both, and 0 otherwise.

    >>> same_text(" 42  ", Item("17+25=", "42"))
    1.0
    """
    return float(text.strip() == item.answer.strip())


def exact_match(text: str, item: Item) -> float:
    """Returns 1 if the first line of an answer is the right one, and 0 otherwise.

    >>> exact_match(" 42 ", Item("17+25=", "42"))
    1.0
    """
    return float(first_line(text) == item.answer)
