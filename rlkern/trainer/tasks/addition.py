# SPDX-License-Identifier: Apache-2.0
"""Task addition: two-digit sums in characters."""

from __future__ import annotations

import random
from functools import lru_cache

from rlkern.runs.errors import UserError
from rlkern.trainer.tasks.task import Item, Task, epochs, exact_match


def addition(*, seed: int, eval_items: int) -> Task:
    """Returns two-digit addition in characters, `12+34=` to `046`.

    Operands and sum are zero-padded, which a tiny model learns many times faster. A pair is held
    out in both orders.
    """
    items = _items(seed)
    if eval_items > len(items) // 2:
        raise UserError(
            f"task addition: eval.items must be at most {len(items) // 2}, got {eval_items}"
        )
    return Task(
        name="addition",
        item=epochs(items[eval_items:], seed),
        held_out=items[:eval_items],
        score=exact_match,
        stop="",
        max_new_tokens=4,
        alphabet="0123456789+=",
    )


# A comparison asks for the same ones for every algorithm.
@lru_cache(maxsize=4)
def _items(seed: int) -> list[Item]:
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(pairs)
    return [Item(f"{a:02d}+{b:02d}=", f"{a + b:03d}", key=tuple(sorted((a, b)))) for a, b in pairs]
