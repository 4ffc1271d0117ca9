# SPDX-License-Identifier: Apache-2.0
"""A file as a task: its rows are the items, and the model's tokens decide which of them fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from rlkern.trainer.data.chat import Chat, shown
from rlkern.trainer.data.examples import Example
from rlkern.trainer.data.render import prompt_ids, tokens, unknown
from rlkern.trainer.data.source import alphabet, key_of, read_source
from rlkern.trainer.errors import UserError
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.reads import DATA
from rlkern.trainer.tasks.task import Item, Task, epochs, same_text

# Tokens of an answer to a prompt of a file, unless rollout.max_new_tokens says another number.
_NEW_TOKENS = 256


def file_task(settings: Settings) -> Task:
    """Returns the rows of data.train as a task; Raises UserError, before a model is loaded, for
    rows that the algorithm cannot learn from."""
    found = read_source(settings)
    for example in (*found.train, *found.held_out):
        if why := _lacking(example, settings):
            raise UserError(f"{example.where}: {why}")
    train, held_out = ([_item(e) for e in part] for part in (found.train, found.held_out))
    return Task(
        name=settings.asked,
        item=epochs(train, settings.seed),
        held_out=held_out,
        score=same_text,
        stop=settings.data.stop,
        max_new_tokens=_NEW_TOKENS,
        alphabet=alphabet([*found.train, *found.held_out]),
        rows=tuple(train),
        notes=found.notes,
        chat=isinstance(asked := found.train[0].prompt, Chat) and asked.text is None,
    )


def _item(example: Example) -> Item:
    prompt = "" if example.prompt is None else shown(example.prompt)
    return Item(prompt, example.answer or "", example.columns, key_of(example), example)


def _lacking(example: Example, settings: Settings) -> str | None:
    """Returns what a row lacks for the algorithm, in words with what to do; None if nothing."""
    learns_from, declared = settings.declared.learns_from, settings.algorithm
    judges = learns_from in ("pairs", "judged")
    given = judges and settings.pairs.source == DATA
    pair = example.target is not None and example.rejected is not None
    if given and not pair and not (learns_from == "judged" and example.label is not None):
        more = ", or completion and label" if learns_from == "judged" else ""
        return (
            f"algorithm {declared} learns from columns chosen and rejected{more}; name them"
            " (data.columns), or use --pairs.source sampled"
        )
    if given and example.prompt is None:
        return "a preference needs a prompt"
    right = example.target is not None or example.answer is not None
    if not right and (learns_from == "answers" or settings.sft is not None):
        key = "" if learns_from == "answers" else "; add --sft null"
        return f"supervised steps learn from a completion, an answer, messages or text{key}"
    if learns_from != "rollouts" and not (judges and not given):
        return None
    if example.prompt is None:
        return f"algorithm {declared} needs a prompt, and plain text has none"
    if example.answered:
        return (
            "its messages end with the assistant where a prompt is due; leave that message out, or"
            " name a column of prompts (--data.columns.prompt NAME)"
        )
    if "task" in settings.reward.functions and example.answer is None:
        return (
            "reward task compares with an answer, and there is none: name its column"
            " (--data.columns.answer NAME), or another --reward"
        )
    return None


def fitted(task: Task, tokenizer: Any, settings: Settings, *, context: int, new: int) -> Task:
    """Returns the task without the rows that are too long for the model and data.max_prompt.

    new  tokens that an answer may take if answers are sampled; else 0
    Raises UserError for a prompt without tokens, for text without, and if nothing is left.
    """
    if task.rows is None:
        return task
    data = settings.data
    most = data.max_prompt or context - max(new, 1)
    if most + new > context:
        raise UserError(
            f"data.max_prompt {data.max_prompt} and {new} new tokens (rollout.max_new_tokens) must"
            f" fit the model's context of {context}"
        )
    cut = data.too_long == "truncate"
    keep, notes = (most if cut else 0), list(task.notes)
    parts, long = [list[Item](), list[Item]()], list[str]()
    over = 0
    for part, items in zip(parts, (task.rows, task.held_out)):
        for item in items:
            asked, whole = _lengths(item, task, tokenizer, keep)
            over += asked > most
            if (asked > most and not cut) or min(asked, most) + whole > context:
                long.append(f"{_example(item).where} with {asked} tokens and {whole} after them")
            else:
                part.append(item)
    if over and cut:
        notes.append(f"{over} prompts are cut to their last {most} tokens (data.max_prompt)")
    if long:
        notes.append(
            f"{len(long)} rows left out, which do not fit {most} tokens of prompt (data.max_prompt)"
            f" or the model's context of {context}, the first {long[0]}"
        )
    train, held = parts
    if not train or not held:
        raise UserError(
            f"data.train {data.train} must keep rows to learn from and to hold out:"
            f" {notes[-1]}; raise data.max_prompt or use --data.too_long truncate"
        )
    return dataclasses.replace(
        task,
        item=epochs(train, settings.seed),
        rows=tuple(train),
        held_out=held,
        notes=tuple(notes),
        keep=keep,
    )


def _example(item: Item) -> Example:
    assert item.row is not None  # an item of a file
    return item.row


def _lengths(item: Item, task: Task, tokenizer: Any, keep: int) -> tuple[int, int]:
    """Returns the tokens of a prompt, and those of the longest given answer to it."""
    row, ends = _example(item), (tokenizer.eos_token_id,)
    asked = [] if row.prompt is None else prompt_ids(tokenizer, row.prompt)
    if row.prompt is not None and not asked:
        raise UserError(f"{row.where}: a prompt must have at least one token, it has none")
    given = [
        tokens(tokenizer, row.prompt, answer, ends=ends, stop=task.stop)
        for answer in (row.target, row.rejected)
        if answer is not None
    ]
    if unknown(tokenizer, [*asked, *(i for each in given for i in each.answer)]):
        raise UserError(
            f"{row.where}: the model has no token for some of its text; use another --model"
        )
    return len(asked), max((len(each.answer) for each in given), default=0)
