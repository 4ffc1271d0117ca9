# SPDX-License-Identifier: Apache-2.0
"""Conversations: the model and an environment write in turn, and only the model's tokens count."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlkern.runs.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.engines import Engine
from rlkern.trainer.rollout.growing import appended, given_messages, so_far
from rlkern.trainer.rollout.sampler import Sampling
from rlkern.trainer.rollout.talks import talk
from rlkern.trainer.rollout.text import encode, following, text_of, texts, token_ids
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings
from rlkern.trainer.tasks.task import Item, Task


def converse(
    engine: Engine,
    task: Task,
    items: list[Item],
    sampling: Sampling,
    *,
    group_size: int,
    uniform: Tensor | None,
) -> Rows:
    """Returns group_size answers to each item: texts, or conversations with the task's
    environment, whose messages are present but do not count.

    uniform  (B, max_turns·max_new_tokens) as in sample; turn k reads its own max_new_tokens columns
    """
    if task.begin is not None:
        return talk(engine, task, items, sampling, group_size=group_size, uniform=uniform)
    policy, width = engine.policy, sampling.max_new_tokens
    asked = [item.asked or "" for item in items]
    prompts = encode(policy, asked, max_new_tokens=width, keep=task.keep)

    def numbers(rows: slice | list[int], turn: int) -> Tensor | None:
        return None if uniform is None else uniform[rows, turn * width : (turn + 1) * width]

    found = engine.sample(prompts, sampling, group_size=group_size, uniform=numbers(slice(None), 0))
    going = list(range(len(items) * group_size)) if task.reply else []
    for turn in range(1, sampling.max_turns):
        replies = _replies(policy, task, items, found, going)
        if not replies:
            break
        going, rows = list(replies), torch.tensor(list(replies), device=found.token.device)
        found = appended(found, rows, given_messages(policy, found, list(replies.values())))
        part = engine.sample(
            so_far(policy, found, going, width),
            sampling,
            group_size=1,
            uniform=numbers(going, turn),
        )
        found = appended(found, rows, part)
    return found


def most_turns(settings: Settings, task: Task) -> int:
    """Returns how many messages the model may write; Raises UserError if nobody answers them."""
    asked = settings.rollout.max_turns
    if asked > 1 and task.reply is None and task.begin is None:
        raise UserError(
            f"rollout.max_turns must be 1 for task {task.name}, whose environment does not answer,"
            f" got {asked}"
        )
    return asked or task.max_turns


def sampling_of(settings: Settings, task: Task, stop: Tensor) -> Sampling:
    """Returns how the answers of a run are drawn."""
    rollout = settings.rollout
    return Sampling(
        max_new_tokens=rollout.max_new_tokens or task.max_new_tokens,
        stop=stop,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        max_turns=most_turns(settings, task),
    )


def _replies(
    policy: Policy, task: Task, items: list[Item], found: Rows, going: list[int]
) -> dict[int, list[int]]:
    """Returns the tokens of what the environment says next, by row; nothing for a conversation that
    is over."""
    if task.reply is None or not going:
        return {}
    said, replies = texts(policy, found), dict[int, list[int]]()
    for row in going:
        item = items[row // found.group_size]
        message = task.reply(item, said[row])
        if message is not None:
            replies[row] = following(policy.tokenizer, item.prompt + said[row], message)
    return replies


def without_replies(policy: Policy, conversations: Rows, items: list[Item], task: Task) -> Rows:
    """Returns given conversations, one to each item, with the environment's messages present and
    not counted; found by asking it again.
    """
    if task.reply is None:
        return conversations
    mask, every = conversations.mask.clone(), token_ids(conversations)
    for row, item in enumerate(items):
        asked, ids = every["prompt_ids"][row], every["completion_ids"][row]
        at = 0
        while at < len(ids):
            at += 1
            if task.stop in policy.tokenizer.decode(ids[at - 1 : at]):
                so_far = text_of(policy, asked, ids[:at])
                said = task.reply(item, so_far) or ""
                count = len(following(policy.tokenizer, item.prompt + so_far, said))
                mask[row, at : at + count] = False
                at += count
    return replace(conversations, mask=mask)
