# SPDX-License-Identifier: Apache-2.0
"""Which rows of a file fit the model: its tokens decide."""

from __future__ import annotations

import dataclasses

from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import shown_answer
from rlkern.trainer.data.examples import Example
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.text import check_known, given_tokens, prompt_ids
from rlkern.trainer.settings import Settings
from rlkern.trainer.tasks.task import Item, Task, epochs


def fitted(task: Task, policy: Policy, settings: Settings, *, new: int) -> Task:
    """Returns the task without the rows that are too long for the model and data.max_prompt.

    new  tokens that an answer may take if answers are sampled; else 0
    Raises UserError for a prompt without tokens, for text without, and if nothing is left.
    """
    if task.rows is None:
        return task
    data, context = settings.data, policy.context
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
            asked, whole = _lengths(item, task, policy)
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


def _lengths(item: Item, task: Task, policy: Policy) -> tuple[int, int]:
    """Returns the tokens of a prompt, and those of the longest given answer to it; Raises
    UserError, which names the row, for text that the model cannot read."""
    row = _example(item)
    answers = [answer for answer in (row.target, row.rejected) if answer is not None]
    try:
        asked = [] if row.prompt is None else prompt_ids(policy.tokenizer, row.prompt)
        given = given_tokens(policy, row.prompt, answers, stop=task.stop) if answers else []
        every = [*asked, *(i for each in given for i in (*each.prompt, *each.answer))]
        check_known(policy, every, item.prompt or shown_answer(item.right))
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from error
    return len(asked), max((len(each.answer) for each in given), default=0)
