# SPDX-License-Identifier: Apache-2.0
"""Environments of TRL's GRPOTrainer(environment_factory=...): a class whose reset(**row) begins an
episode, whose other public methods are tools, and whose get_reward() is the reward at its end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rlkern.runs.code import described
from rlkern.runs.errors import RewardError, UserError
from rlkern.trainer.data.chat import Message
from rlkern.trainer.tasks.conversation import Conversation, awaited

_NO_TOOLS = ("reset", "get_reward")


class TrlFactory:
    """What makes environments: one for each conversation that goes on at a time, reset for the
    next. Their rows are those of data.train."""

    items = None
    max_turns = 8
    max_new_tokens = 256

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        self._make, self._name = make, name
        self._idle = [self._new()]
        self._openings: dict[str, str] = {}

    @property
    def score(self) -> Callable | None:
        """What says the reward, None if the environment does not."""
        return getattr(self._idle[0], "get_reward", None)

    def tools_by_name(self) -> dict[str, Callable]:
        """Returns the tools of an environment."""
        return _tools(self._idle[0])

    def opening(self, row: Mapping[str, Any]) -> str:
        """Returns what an episode begins with, behind the prompt of its row."""
        return self._openings.setdefault(repr(row), self._reset(self._idle[0], row))

    def begin(self, name: str, row: Mapping[str, Any]) -> Conversation:
        """Returns the conversation with an environment that was reset for a row; Raises RewardError
        where that says something else than it did before, which the prompt holds."""
        one = self._idle.pop() if self._idle[1:] else self._new()  # the first one is looked at
        said = self._reset(one, row)
        before = self._openings.get(repr(row), said)
        if said != before:
            raise RewardError(
                f"environment {name}: reset must return the same for the same row, which is the end"
                f" of the prompt, it returned {before!r:.60} and {said!r:.60}"
            )

        def score(transcript: list[Message]) -> float | None:
            self._idle.append(one)
            return awaited(one.get_reward()) if hasattr(one, "get_reward") else None

        return Conversation(name, _tools(one), None, score)

    def _new(self) -> Any:
        try:
            return self._make()
        except Exception as error:
            raise UserError(
                f"environment {self._name} cannot be made: {type(error).__name__}: {error}"
            ) from error

    def _reset(self, one: Any, row: Mapping[str, Any]) -> str:
        try:
            found = awaited(one.reset(**row))
        except Exception as error:
            raise UserError(
                f"environment {self._name}: reset {described(error, type(one).reset)}; it is given"
                f" the columns {', '.join(row)}"
            ) from error
        if found is not None and not isinstance(found, str):
            raise UserError(
                f"environment {self._name}: reset must return a text or None, got"
                f" {type(found).__name__}"
            )
        return found or ""


def _tools(one: Any) -> dict[str, Callable]:
    # Of the class: asking an object for its members would run its properties.
    names = [name for name, _ in inspect.getmembers(type(one), inspect.isfunction)]
    return {n: getattr(one, n) for n in names if n not in _NO_TOOLS and not n.startswith("_")}
