# SPDX-License-Identifier: Apache-2.0
"""Tasks: an endless stream of training items, and held-out items that never occur in it."""

from __future__ import annotations

import random
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
                raise UserError(f"task {self.name}: every item is held out; lower eval.items")
        return items, position


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
