# SPDX-License-Identifier: Apache-2.0
"""One conversation of the model with an environment: its tools, what it replies, what it says of
the whole.

The model calls a tool as Qwen's and Hermes' chat templates have it,

    <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>

once or several times in a message, and what each call returns is a message of the role `tool`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlkern.runs.code import described
from rlkern.runs.errors import RewardError, UserError
from rlkern.trainer.data.chat import USER, Message, messages

TOOL = "tool"
# The key of a message of a tool that says that the call failed.
FAILED = "failed"
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FORM = 'a call must be JSON such as {"name": "NAME", "arguments": {}}'
Reply = str | Sequence[Message] | None


@dataclass
class Conversation:
    """What answers the model: tools by name, then reply(transcript) to a message that calls none.

    score(transcript) is asked once, at the end. name is the environment's, for sentences.
    """

    name: str
    tools: Mapping[str, Callable] = field(default_factory=dict)
    reply: Callable[[list[Message]], Reply] | None = None
    score: Callable[[list[Message]], float | None] | None = None

    def answer(self, transcript: list[Message]) -> list[Message]:
        """Returns what is said to the last message, which is the model's; nothing ends the
        conversation. Raises RewardError if the environment's reply fails."""
        said = str(transcript[-1]["content"])
        calls = _CALL.findall(said) if self.tools else []
        if calls:
            return [called(self.tools, call) for call in calls]
        found = None if self.reply is None else self._asked("reply", self.reply, transcript)
        if found is None:
            return []
        if isinstance(found, str):
            return [{"role": USER, "content": found}]
        where = f"environment {self.name}: what reply returns"
        try:
            return list(messages(list(found), where))
        except (UserError, TypeError) as error:
            raise RewardError(str(error)) from error

    def verdict(self, transcript: list[Message]) -> float | None:
        """Returns what the environment says of the conversation, None if it says nothing; Raises
        RewardError if it fails."""
        return None if self.score is None else self._asked("score", self.score, transcript)

    def _asked(self, what: str, function: Callable, transcript: list[Message]) -> Any:
        try:
            return awaited(function([dict(message) for message in transcript]))
        except Exception as error:
            raise RewardError(
                f"environment {self.name}: {what} {described(error, _inner(function))}"
            ) from error


def _inner(function: Any) -> Any:
    while hasattr(function, "func"):  # of a partial
        function = function.func
    return function


def awaited(found: Any) -> Any:
    """Returns what a function returned, or what its coroutine does."""
    return asyncio.run(found) if inspect.iscoroutine(found) else found


def called(tools: Mapping[str, Callable], call: str) -> Message:
    """Returns the message of a tool that was called; what goes wrong is told to the model.

    >>> called({"add": lambda a, b: a + b}, '{"name": "add", "arguments": {"a": 1, "b": 2}}')
    {'role': 'tool', 'name': 'add', 'content': '3'}
    >>> called({}, '{"name": "add"}')["content"]
    'error: there is no tool add; there is none'
    """
    name = ""
    try:
        asked = json.loads(call)
        name, given = asked["name"], asked.get("arguments") or {}
        if isinstance(given, str):  # as OpenAI's interface writes arguments
            given = json.loads(given)
        if name not in tools or not isinstance(given, Mapping):
            known = ", ".join(tools) or "none"
            why = f"there is no tool {name}; there is {known}" if name not in tools else _FORM
            return _failed(str(name), why)
    except (ValueError, LookupError, TypeError, AttributeError):
        return _failed(str(name), _FORM)
    try:
        found = awaited(tools[name](**given))
        content = found if isinstance(found, str) else json.dumps(found, default=str)
    except Exception as error:
        return _failed(name, f"{type(error).__name__}: {error}")
    return {"role": TOOL, "name": name, "content": content}


def _failed(name: str, why: str) -> Message:
    return {"role": TOOL, "name": name, "content": f"error: {why}", FAILED: True}


def described_tools(tools: Mapping[str, Callable], name: str) -> list[dict]:
    """Returns what a chat template shows of tools: name, docstring and types; Raises UserError for
    a tool without them."""
    from transformers.utils import get_json_schema

    found = []
    for tool, function in tools.items():
        try:
            found.append(get_json_schema(function))
        except Exception as error:  # of a docstring or type hints that it does not read
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"environment {name}: tool {tool} needs type hints and a docstring with Args: for"
                f" each argument, which the model is shown: {first}"
            ) from error
    return found
