# SPDX-License-Identifier: Apache-2.0
"""Tasksets of verifiers 0.4 (verifiers.v1): their tasks are asked in one turn, and scored by their
@reward functions. Nothing here imports the package; a person's file has done so.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import ASSISTANT, SYSTEM, USER, Message
from rlkern.trainer.tasks.environment import Environment

_PLACE = "verifiers_task"


def of_taskset(made: Any, name: str) -> Environment | None:
    """Returns the environment that a taskset is, None for anything else; Raises UserError for one
    that needs what is not served: agents, a runtime, servers of tools, no end."""
    package = sys.modules.get("verifiers.v1")
    if package is None:
        return None
    if isinstance(made, package.Env):
        raise UserError(
            f"environment {name} is a verifiers Env, which drives its agents itself; return its"
            " taskset instead (env.taskset), whose tasks are asked in one turn"
        )
    if not isinstance(made, package.Taskset):
        return None
    if not made.bounded:
        raise UserError(
            f"environment {name} is a taskset without end: return taskset.take(1000) or another"
            " number of its tasks"
        )
    tasks = list(made)
    for task in tasks[:1]:
        _check(task, made, name)
    rows = [_row(task, place) for place, task in enumerate(tasks)]

    def score(row: Mapping[str, Any], said: list[Message]) -> float:
        return _reward(tasks[row[_PLACE]], said)

    return Environment(items=rows, score=score, max_turns=1)


def _check(task: Any, taskset: Any, name: str) -> None:
    if type(taskset).toolsets(taskset.config) or type(task).toolsets(task.config):
        raise UserError(
            f"environment {name} has toolsets, which verifiers serves over MCP and rlkern does not;"
            " write an Environment with tools that are functions"
        )
    for reward in task.hooks("reward"):
        needed = inspect.signature(reward).parameters.get("runtime")
        if needed is not None and needed.default is needed.empty:
            raise UserError(
                f"environment {name}: its reward {reward.__name__} needs a runtime, which rlkern"
                " does not start"
            )


def _row(task: Any, place: int) -> dict[str, Any]:
    data = task.data
    asked = data.prompt
    said = (
        [{"role": USER, "content": asked or ""}]
        if isinstance(asked, str) or asked is None
        else [message.model_dump(exclude_none=True) for message in asked]
    )
    if data.system_prompt:
        said = [{"role": SYSTEM, "content": data.system_prompt}, *said]
    answer = getattr(data, "answer", None)
    return {"prompt": said, _PLACE: place, **({} if answer is None else {"answer": answer})}


def _reward(task: Any, said: list[Message]) -> float:
    """Returns the weighted sum of a task's rewards for an answer, with the trace that verifiers
    would have made of it."""
    from verifiers.v1.configs.agent import AgentConfig
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask
    from verifiers.v1.types import AssistantMessage, UserMessage

    nodes = [MessageNode(message=UserMessage(content=task.data.prompt_text))]
    for message in said:
        if message["role"] == ASSISTANT:
            own = AssistantMessage(content=message["content"])
            nodes.append(MessageNode(parent=len(nodes) - 1, message=own, sampled=True))
    trace = Trace(
        task=TraceTask(type=type(task).__name__, data=task.data),
        agent=AgentInfo(config=AgentConfig()),
        nodes=nodes,
    )
    asyncio.run(task.score(trace))
    return float(trace.reward)
