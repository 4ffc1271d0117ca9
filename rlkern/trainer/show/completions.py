# SPDX-License-Identifier: Apache-2.0
"""Rollouts as a table: what was asked, what was said, and what came of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

import rlkern
from rlkern.runs.parquet import write_step
from rlkern.trainer.data.chat import Chat
from rlkern.trainer.data.columns import ROLES
from rlkern.trainer.parts import Parts
from rlkern.trainer.rollout.text import token_ids
from rlkern.trainer.rows import Rows, finished
from rlkern.trainer.settings import Settings
from rlkern.trainer.show.keys import COMPLETIONS
from rlkern.trainer.tasks.task import Item

# The columns, which docs/your-data.md explains; those of reward functions come behind them.
TYPES = {
    "step": "int32",
    "question": "string",
    "prompt": "string",
    "completion": "string",
    "answer": "string",
    "reward": "float32",
    "shaped_reward": "float32",
    "advantage": "float32",
    "length": "int32",
    "cut_off": "bool",
}


def question(item: Item, settings: Settings) -> str:
    """Returns what a person asked: without examples before it or a template around it.

    >>> question(Item("Q: 1 + 1? A:", "2", {"question": "1 + 1?"}), Settings())
    '1 + 1?'
    """
    named = settings.data.columns
    if item.row is not None and isinstance(item.row.prompt, Chat):
        return item.prompt
    usual = (named["prompt"],) if "prompt" in named else ROLES["prompt"]
    found = (item.columns.get(name) for name in usual)
    return next((text for text in found if isinstance(text, str)), item.prompt)


def write_completions(run: Path, step: int, parts: Parts, rows: Rows) -> None:
    """Write the answers of a step, in the order of their prompts."""
    columns = columns_of(step, parts, rows)
    types = {name: TYPES.get(name, "float32") for name in columns}
    write_step(run / COMPLETIONS, step, columns, types)


def columns_of(step: int, parts: Parts, rows: Rows) -> dict[str, list[Any]]:
    """Returns the answers of a step by column; None is a reward that nobody could give."""
    assert rows.item is not None and rows.text is not None and rows.rewards is not None
    assert rows.reward is not None and rows.shaped_reward is not None
    G, ids = rows.group_size, token_ids(rows)["prompt_ids"][:: rows.group_size]
    prompts = [parts.policy.tokenizer.decode(each) for each in ids]
    by_function = zip(parts.rewards.names, rows.rewards.T, strict=True)
    return {
        "step": [step] * len(rows.item),
        "question": [question(item, parts.settings) for item in rows.item],
        "prompt": [text for text in prompts for _ in range(G)],
        "completion": rows.text,
        "answer": [item.answer for item in rows.item],
        "reward": _numbers(rows.reward),
        "shaped_reward": _numbers(rows.shaped_reward),
        "advantage": _numbers(_of_answers(rows)),
        "length": rows.mask.sum(-1).tolist(),
        "cut_off": (~finished(rows, parts.sampling.stop)).tolist(),
        **{f"rewards/{name}": _numbers(row) for name, row in by_function},
    }


def _numbers(x: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in x.tolist()]


def _of_answers(rows: Rows) -> Tensor:
    """Returns the advantage (B,) of each answer: where tokens have their own, the mean over those
    that count."""
    advantage = rows.advantage
    assert advantage is not None
    return advantage if advantage.ndim == 1 else rlkern.mean_sequence_logprob(advantage, rows.mask)
