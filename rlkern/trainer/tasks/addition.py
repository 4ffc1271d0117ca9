# SPDX-License-Identifier: Apache-2.0
"""Task addition: two-digit sums in characters."""

from __future__ import annotations

import random

from rlkern.runs.errors import UserError
from rlkern.trainer.tasks.task import Item, Task, epochs, exact_match


def addition(*, seed: int, eval_items: int) -> Task:
    """Returns two-digit addition in characters, `12+34=` to `046`.

    Operands and sum are zero-padded, which a tiny model learns many times faster. A pair is held
    out in both orders.
    """
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(pairs)
    if eval_items > len(pairs) // 2:
        raise UserError(
            f"task addition: eval.items must be at most {len(pairs) // 2}, got {eval_items}"
        )
    items = [Item(f"{a:02d}+{b:02d}=", f"{a + b:03d}", key=tuple(sorted((a, b)))) for a, b in pairs]
    return Task(
        name="addition",
        item=epochs(items[eval_items:], seed),
        held_out=items[:eval_items],
        score=exact_match,
        stop="",
        max_new_tokens=4,
        alphabet="0123456789+=",
    )
