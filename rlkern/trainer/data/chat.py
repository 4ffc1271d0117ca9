# SPDX-License-Identifier: Apache-2.0
"""Conversations, before a tokenizer's template makes text of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rlkern.runs.errors import UserError

Message = dict[str, Any]
ASSISTANT, SYSTEM, USER = "assistant", "system", "user"


@dataclass(frozen=True)
class Chat:
    """A conversation that the model goes on with.

    messages  role and content of each, as a chat template takes them
    tools     descriptions of functions, for the template
    text      what a tokenizer without a template reads instead; None if it cannot
    """

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    text: str | None = None


# What a model goes on with, and what it should have said: text, or messages.
Prompt = str | Chat
Answer = str | tuple[Message, ...]


def shown(prompt: Prompt) -> str:
    """Returns the prompt for a person and a reward: its text, of a conversation the last message.

    >>> shown(Chat(({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})))
    'Hi'
    """
    return prompt if isinstance(prompt, str) else str(prompt.messages[-1].get("content") or "")


def as_text(prompt: Prompt) -> str:
    """Returns a prompt as a tokenizer without a template reads it."""
    return prompt if isinstance(prompt, str) else prompt.text or ""


def shown_answer(answer: Answer) -> str:
    """Returns an answer for a person: its text, of several messages the first one's."""
    return answer if isinstance(answer, str) else str(answer[0].get("content") or "")


def identity(prompt: Prompt) -> str:
    """Returns what makes a prompt the same one: its text, or all of its messages; without the
    system's, which is often put before all, unless nobody else says anything.

    >>> rule, asked = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    >>> identity(Chat((rule, asked))), identity(Chat((rule,)))
    ('[["user", "Hi"]]', '[["system", "Be brief."]]')
    """
    if isinstance(prompt, str):
        return prompt
    said = [m for m in prompt.messages if m["role"] != SYSTEM]
    asked = said if any(m.get("content") for m in said) else prompt.messages
    return json.dumps([[m["role"], m.get("content")] for m in asked])


def messages(value: Any, where: str) -> tuple[Message, ...]:
    """Returns a value as messages; Raises UserError, which begins with `where`, for others."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must be a list of messages, got {_brief(value)}")
    return tuple(_message(each, f"{where}, message {n}") for n, each in enumerate(value, 1))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise UserError(f"{where} must have a role and a content, got {_brief(value)}")
    content = value.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and "text" in p for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str) and not (content is None and "tool_calls" in value):
        raise UserError(f"{where} must have a text as its content, got {_brief(content)}")
    return {**value, "content": content}


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def prompt_of_json(value: Any) -> Prompt:
    """Returns the prompt whose fields a JSON file holds."""
    if isinstance(value, str):
        return value
    return Chat(tuple(value["messages"]), tuple(value["tools"]), value["text"])
