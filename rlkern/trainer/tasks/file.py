# SPDX-License-Identifier: Apache-2.0
"""A file as a task: its rows are the items."""

from __future__ import annotations

from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import Chat, shown
from rlkern.trainer.data.examples import Example
from rlkern.trainer.data.source import Source, alphabet, key_of, read_source
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.reads import DATA, OF_ANSWERS
from rlkern.trainer.tasks.task import Item, Task, epochs, same_text

# Tokens of an answer to a prompt of a file, unless rollout.max_new_tokens says another number.
_NEW_TOKENS = 256


def file_task(settings: Settings) -> Task:
    """Returns the rows of data.train as a task; Raises UserError, before a model is loaded, for
    rows that the algorithm cannot learn from."""
    return rows_task(read_source(settings), settings)


def rows_task(found: Source, settings: Settings) -> Task:
    """Returns rows as a task; Raises UserError for those that the algorithm cannot learn from."""
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
    own = {"task"} if settings.has_own_task else set()  # an environment may score without
    comparing = [name for name in settings.reward.functions if name in OF_ANSWERS - own]
    if comparing and example.answer is None:
        return (
            f"reward {comparing[0]} compares with an answer, and there is none: name its column"
            " (--data.columns.answer NAME), or another --reward"
        )
    return None
