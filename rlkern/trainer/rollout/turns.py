# SPDX-License-Identifier: Apache-2.0
"""Conversations: the model and an environment write in turn, and only the model's tokens count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.data import Prompts, Rollout, Sampling, encode, left_padded, texts
from rlkern.trainer.rollout.engines import Engine
from rlkern.trainer.tasks.task import Item, Task


def converse(
    engine: Engine,
    task: Task,
    items: list[Item],
    sampling: Sampling,
    *,
    group_size: int,
    uniform: Tensor | None,
) -> Rollout:
    """Returns group_size answers to each item: completions, or conversations with the task's
    environment, whose messages are present but do not count.

    uniform  (B, max_turns·max_new_tokens) as in sample; turn k reads its own max_new_tokens columns
    """
    policy, width = engine.policy, sampling.max_new_tokens
    prompts = encode(policy, [item.prompt for item in items], max_new_tokens=width)

    def numbers(rows: slice | list[int], turn: int) -> Tensor | None:
        return None if uniform is None else uniform[rows, turn * width : (turn + 1) * width]

    found = engine.sample(prompts, sampling, group_size=group_size, uniform=numbers(slice(None), 0))
    going = list(range(len(items) * group_size)) if task.reply else []
    for turn in range(1, sampling.max_turns):
        replies = _replies(policy, task, items, found, going)
        if not replies:
            break
        going, rows = list(replies), torch.tensor(list(replies), device=found.token.device)
        found = _append(found, rows, _messages(policy, found.prompts, list(replies.values())))
        part = engine.sample(
            _so_far(policy, found, going, width),
            sampling,
            group_size=1,
            uniform=numbers(going, turn),
        )
        found = _append(found, rows, part)
    return found


def turns(config: Config, task: Task) -> int:
    """Returns how many messages the model may write; raises one sentence where nobody answers."""
    if config.max_turns > 1 and task.reply is None:
        raise UserError(
            f"max_turns must be 1 for task {task.name}, whose environment does not answer,"
            f" got {config.max_turns}"
        )
    return config.max_turns or task.max_turns


def check_turns(task: Task, algorithm: Any) -> None:
    """Returns nothing; raises one sentence for conversations where a loss counts whole answers."""
    if task.reply is not None and algorithm.learns_from in ("pairs", "judged"):
        raise UserError(
            f"algorithm {algorithm.name} compares whole answers, and task {task.name} is a"
            " conversation; use another task, or an algorithm that samples its own answers"
        )


def _replies(
    policy: Policy, task: Task, items: list[Item], found: Rollout, going: list[int]
) -> dict[int, str]:
    """Returns what the environment says next, by row; nothing for a conversation that is over."""
    if task.reply is None or not going:
        return {}
    said = texts(policy, found)
    replies = {row: task.reply(items[row // found.group_size], said[row]) for row in going}
    return {row: message for row, message in replies.items() if message is not None}


def _messages(policy: Policy, prompts: Prompts, messages: list[str]) -> Rollout:
    """Returns the environment's messages as rows that are present and do not count."""
    rows = [policy.tokenizer.encode(text, add_special_tokens=False) for text in messages]
    width = max(map(len, rows))
    token = [row + [0] * (width - len(row)) for row in rows]
    present = [[t < len(row) for t in range(width)] for row in rows]
    ids = torch.tensor(token, dtype=torch.int64, device=policy.device)
    real = torch.tensor(present, dtype=torch.bool, device=policy.device)
    return Rollout(
        prompts, ids, torch.zeros_like(real), torch.zeros(ids.shape).to(ids.device), real
    )


def _so_far(policy: Policy, found: Rollout, going: list[int], width: int) -> Prompts:
    """Returns the conversations of some rows as prompts; raises one sentence when one is too
    long."""
    group = found.group_size
    rows = []
    for row in going:
        prompt = found.prompts.token[row // group][found.prompts.mask[row // group]]
        rows.append(torch.cat([prompt, found.token[row][found.present[row]]]).tolist())
    longest = max(map(len, rows))
    if longest + width > policy.context:
        raise UserError(
            f"a conversation of {longest} tokens and {width} new ones do not fit the model's"
            f" context of {policy.context}; lower max_turns or max_new_tokens"
        )
    return left_padded(policy, rows)


def _append(found: Rollout, rows: Tensor, more: Rollout) -> Rollout:
    """Returns the rollout with what was said next in some rows right behind what these hold."""
    start, width = found.token.shape[1], more.token.shape[1]
    kept = max(0 if x.keep is None else x.keep.shape[2] for x in (found, more))
    whole = found.widened(found.prompts.token.shape[1], start + width, kept)
    more = more.widened(more.prompts.token.shape[1], width, kept)
    names = ["token", "mask", "rollout_logprob", "present"] + (["keep"] if kept else [])
    for name in names:
        getattr(whole, name)[rows, start:] = getattr(more, name)
    # Then what is real comes first in each row, in its order.
    order = torch.argsort(whole.present.logical_not().byte(), dim=-1, stable=True)
    order = order[:, : int(whole.present.sum(-1).max())]
    for name in names:
        x = getattr(whole, name)
        index = order if x.ndim == 2 else order[..., None].expand(-1, -1, x.shape[2])
        setattr(whole, name, x.gather(1, index))
    return whole


def without_replies(
    policy: Policy, conversations: Rollout, items: list[Item], task: Task
) -> Rollout:
    """Returns given conversations, one to each item, with the environment's messages present and
    not counted; found by asking it again.
    """
    if task.reply is None:
        return conversations
    tokenizer, mask = policy.tokenizer, conversations.mask.clone()
    for row, item in enumerate(items):
        ids = conversations.token[row][conversations.present[row]].tolist()
        at = 0
        while at < len(ids):
            said, at = None, at + 1
            if task.stop in tokenizer.decode(ids[at - 1 : at]):
                said = task.reply(item, tokenizer.decode(ids[:at], skip_special_tokens=True))
            count = len(tokenizer.encode(said or "", add_special_tokens=False))
            mask[row, at : at + count] = False
            at += count
    return replace(conversations, mask=mask)
