# SPDX-License-Identifier: Apache-2.0
"""Conversations: the model and an environment write in turn, and only the model's tokens count."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlkern.runs.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.engines import Engine
from rlkern.trainer.rollout.sampler import Sampling
from rlkern.trainer.rollout.text import (
    Prompts,
    encode,
    following,
    left_padded,
    text_of,
    texts,
    token_ids,
)
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
        found = _append(found, rows, _messages(policy, found, list(replies.values())))
        part = engine.sample(
            _so_far(policy, found, going, width),
            sampling,
            group_size=1,
            uniform=numbers(going, turn),
        )
        found = _append(found, rows, part)
    return found


def most_turns(settings: Settings, task: Task) -> int:
    """Returns how many messages the model may write; Raises UserError if nobody answers them."""
    asked = settings.rollout.max_turns
    if asked > 1 and task.reply is None:
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


def _messages(policy: Policy, found: Rows, rows: list[list[int]]) -> Rows:
    """Returns the tokens of the environment's messages as rows that are present and do not
    count."""
    width = max(map(len, rows))
    token = [row + [0] * (width - len(row)) for row in rows]
    present = [[t < len(row) for t in range(width)] for row in rows]
    ids = torch.tensor(token, dtype=torch.int64, device=policy.device)
    real = torch.tensor(present, dtype=torch.bool, device=policy.device)
    return Rows(
        prompt=found.prompt,
        prompt_mask=found.prompt_mask,
        token=ids,
        mask=torch.zeros_like(real),
        present=real,
        rollout_logprob=torch.zeros(ids.shape).to(ids.device),
    )


def _so_far(policy: Policy, found: Rows, going: list[int], width: int) -> Prompts:
    """Returns the conversations of some rows as prompts; Raises UserError if one is too long."""
    group = found.group_size
    rows = []
    for row in going:
        prompt = found.prompt[row // group][found.prompt_mask[row // group]]
        rows.append(torch.cat([prompt, found.token[row][found.present[row]]]).tolist())
    longest = max(map(len, rows))
    if longest + width > policy.context:
        raise UserError(
            f"a conversation of {longest} tokens and {width} new ones do not fit the model's"
            f" context of {policy.context}; lower rollout.max_turns or rollout.max_new_tokens"
        )
    return left_padded(policy, rows)


_GROWING = ("token", "mask", "present", "rollout_logprob", "keep")


def _append(found: Rows, index: Tensor, more: Rows) -> Rows:
    """Returns the rows, those of the index with the tokens of `more` right behind their own."""
    start, width = found.token.shape[1], more.token.shape[1]
    kept = max(0 if x.keep is None else x.keep.shape[2] for x in (found, more))
    whole = found.widened(found.prompt.shape[1], start + width, kept)
    more = more.widened(more.prompt.shape[1], width, kept)
    grown = {}
    for name in _GROWING[: None if kept else -1]:
        x = getattr(whole, name).clone()
        x[index, start:] = getattr(more, name)
        grown[name] = x
    # Then what is real comes first in each row, in its order.
    present = grown["present"]
    order = torch.argsort(present.logical_not().byte(), dim=-1, stable=True)
    order = order[:, : int(present.sum(-1).max())]
    for name, x in grown.items():
        places = order if x.ndim == 2 else order[..., None].expand(-1, -1, x.shape[2])
        grown[name] = x.gather(1, places)
    return replace(whole, **grown)


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
