# SPDX-License-Identifier: Apache-2.0
"""An environment of one's own: what a person's function makes, `--task my_env.py:make`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlkern.trainer.data.chat import Message
from rlkern.trainer.tasks.conversation import Conversation, Reply

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Questions, and the other side of conversations about them.

    items           rows as those of a data file: prompt (a text or messages), and mostly answer;
                    completion for supervised steps; any other columns. None takes data.train's
    score           score(row, messages): a number for a conversation, None where it cannot tell;
                    messages are all that was said behind the prompt, by role and content. None
                    leaves that to another --reward
    reply           reply(row, messages): what is said to the model's last message, which calls no
                    tool: a text, which becomes a user's message, messages, or None to end
    tools           functions with type hints and a docstring with Args:, which the model may call
    max_turns       messages of the model, at most; rollout.max_turns goes over it
    max_new_tokens  tokens of one of its messages, at most; rollout.max_new_tokens goes over it
    """

    items: Iterable[Row] | None = None
    score: Callable[[Row, list[Message]], float | None] | None = None
    reply: Callable[[Row, list[Message]], Reply] | None = None
    tools: Sequence[Callable] = ()
    max_turns: int = 8
    max_new_tokens: int = 256

    def tools_by_name(self) -> dict[str, Callable]:
        """Returns the tools by the names that the model calls them by."""
        return {tool.__name__: tool for tool in self.tools}

    def opening(self, row: Row) -> str:
        """Returns what stands behind the prompt of a row: nothing."""
        return ""

    def begin(self, name: str, row: Row) -> Conversation:
        """Returns the other side of a conversation about a row."""
        return Conversation(
            name,
            self.tools_by_name(),
            None if self.reply is None else partial(self.reply, row),
            None if self.score is None else partial(self.score, row),
        )
