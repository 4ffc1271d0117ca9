# SPDX-License-Identifier: Apache-2.0
"""Conversations in messages: the model and an environment of one's own, with tools.

What the environment says is rendered by the model's chat template, is read by the model, and does
not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlkern.trainer.data.chat import ASSISTANT, Message
from rlkern.trainer.data.render import reply_ids
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.engines import Engine
from rlkern.trainer.rollout.growing import appended, given_messages, so_far
from rlkern.trainer.rollout.sampler import Sampling
from rlkern.trainer.rollout.text import encode, end_tokens, text_of, token_ids
from rlkern.trainer.rows import Rows
from rlkern.trainer.tasks.conversation import FAILED, TOOL, Conversation
from rlkern.trainer.tasks.task import Item, Task


@dataclass
class _Talk:
    """A conversation, what was said in it, and how many tokens stand before the next answer."""

    conversation: Conversation
    said: list[Message] = field(default_factory=list)
    begun: int = 0

    def hear(self, policy: Policy, ids: list[int]) -> list[int]:
        """Notes what the model said last; returns its tokens."""
        own = ids[self.begun :]
        self.said.append({"role": ASSISTANT, "content": text_of(policy, [], own)})
        return own

    def reply(self, policy: Policy, prompt: int, answers: int, room: int) -> list[int] | None:
        """Returns the tokens of what is replied; None where nothing is, or where after so many
        tokens the context has no room for another answer."""
        reply = self.conversation.answer(self.said)
        if not reply:
            return None
        ids = reply_ids(policy.tokenizer, reply, end_tokens(policy))
        if prompt + answers + len(ids) + room > policy.context:
            return None
        self.said += reply
        self.begun = answers + len(ids)
        return ids


def talk(
    engine: Engine,
    task: Task,
    items: list[Item],
    sampling: Sampling,
    *,
    group_size: int,
    uniform: Tensor | None,
) -> Rows:
    """Returns group_size conversations about each item, with what was said in each and what the
    environment says of it. One ends where nothing is replied, with a message of the model that was
    cut off, or before the context is too short for another one.

    uniform  as in converse
    """
    assert task.begin is not None
    policy, width = engine.policy, sampling.max_new_tokens
    asked = [item.asked or "" for item in items]
    prompts = encode(policy, asked, max_new_tokens=width, keep=task.keep)
    repeated = [item for item in items for _ in range(group_size)]
    talks = [_Talk(task.begin(item)) for item in repeated]
    going, stop = list(range(len(repeated))), set(sampling.stop.tolist())

    def numbers(rows: list[int], turn: int) -> Tensor | None:
        return None if uniform is None else uniform[rows, turn * width : (turn + 1) * width]

    found = engine.sample(prompts, sampling, group_size=group_size, uniform=numbers(going, 0))
    for turn in range(1, sampling.max_turns + 1):
        every, replies = token_ids(found), dict[int, list[int]]()
        for row in going:
            prompt, answers = (every[name][row] for name in ("prompt_ids", "completion_ids"))
            own = talks[row].hear(policy, answers)
            if turn < sampling.max_turns and own and own[-1] in stop:
                reply = talks[row].reply(policy, len(prompt), len(answers), width)
                if reply is not None:
                    replies[row] = reply
        if not replies:
            break
        going = list(replies)
        rows = torch.tensor(going, device=found.token.device)
        found = appended(found, rows, given_messages(policy, found, list(replies.values())))
        part = engine.sample(
            so_far(policy, found, going, width),
            sampling,
            group_size=1,
            uniform=numbers(going, turn),
        )
        found = appended(found, rows, part)
    verdict = [each.conversation.verdict(each.said) for each in talks]
    return replace(found, transcript=[each.said for each in talks], verdict=verdict)


def answer_columns(rows: Rows) -> dict[str, list]:
    """Returns what rewards may read of each answer beside its text: the tokens, and of a
    conversation what its environment says."""
    found: dict[str, list] = dict(token_ids(rows))
    return found if rows.verdict is None else {**found, "verdict": rows.verdict}


def conversation_statistics(rows: Rows) -> dict[str, float]:
    """Returns messages of the model and calls of tools, a conversation, and the share of the calls
    that failed; nothing for answers that are no conversations."""
    if rows.transcript is None:
        return {}
    every = [message for each in rows.transcript for message in each]
    calls = [message for message in every if message["role"] == TOOL]
    own = sum(message["role"] == ASSISTANT for message in every)
    return {
        "conversations/messages": own / len(rows.transcript),
        "conversations/tool_calls": len(calls) / len(rows.transcript),
        "conversations/failed_calls": sum(FAILED in m for m in calls) / max(1, len(calls)),
    }
