# SPDX-License-Identifier: Apache-2.0
"""Task guess: find a hidden digit by asking, the smallest game in which an answer has turns."""

from __future__ import annotations

import random
import re

from rlkern.runs.errors import UserError
from rlkern.trainer.tasks.task import Item, Task, epochs

_TURNS = 3
_CONVERSATION = re.compile(r"(\d\?[<>])*(\d)\?")


def guess(*, seed: int, eval_items: int) -> Task:
    """Returns the game `3-8:` to `5?>7?<6?`: the model asks `d?`, the environment answers that the
    hidden digit is less or greater.

    A range is held out with all its digits. Three questions find any of 7 digits, so an accuracy of
    0.95 over all ranges is the best there is; asking whatever the answers leave possible is worse.
    """
    ranges = [(low, high) for low in range(10) for high in range(low, 10)]
    random.Random(seed).shuffle(ranges)
    items = [
        Item(f"{low}-{high}:", "", {"low": low, "high": high, "hidden": hidden})
        for low, high in ranges
        for hidden in range(low, high + 1)
    ]
    if eval_items > len(items) // 2:
        raise UserError(
            f"task guess: eval.items must be at most {len(items) // 2}, got {eval_items}"
        )
    barred = {item.prompt for item in items[:eval_items]}
    order = epochs([item for item in items if item.prompt not in barred], seed)
    return Task(
        name="guess",
        item=lambda position: _answered(order(position), f"{seed}/{position}"),
        held_out=[_answered(item, str(seed)) for item in items[:eval_items]],
        score=lambda text, item: float(_asked(text) == item.columns["hidden"]),
        stop="?",
        max_new_tokens=2,
        alphabet="0123456789-:?<>",
        reply=reply,
        max_turns=_TURNS,
    )


def _asked(text: str) -> int | None:
    """Returns the last digit that was asked; None for what is no conversation."""
    found = _CONVERSATION.fullmatch(text)
    return int(found[2]) if found else None


def reply(item: Item, text: str) -> str | None:
    """Returns what the environment says to a conversation; None once the digit is found or the
    model has not asked for one.

    >>> item = Item("3-8:", "", {"hidden": 6})
    >>> reply(item, "5?"), reply(item, "5?>7?"), reply(item, "5?>7?<6?"), reply(item, "55")
    ('>', '<', None, None)
    """
    asked, hidden = _asked(text), item.columns["hidden"]
    if asked is None or asked == hidden:
        return None
    return ">" if hidden > asked else "<"


def _answered(item: Item, seed: str) -> Item:
    """Returns the item with a conversation that finds the digit in time as its answer.

    Each question is drawn from the digits that the answers so far leave: right, but not clever.
    """
    draw, hidden = random.Random(seed), item.columns["hidden"]
    while True:
        low, high, text = item.columns["low"], item.columns["high"], ""
        for _ in range(_TURNS):
            asked = draw.randint(low, high)
            text += f"{asked}?"
            said = reply(item, text)
            if said is None:
                return Item(item.prompt, text.removesuffix("?"), item.columns)
            low, high = (asked + 1, high) if hidden > asked else (low, asked - 1)
            text += said
