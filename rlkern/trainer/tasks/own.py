# SPDX-License-Identifier: Apache-2.0
"""From a name, `my_env.py:make` or `module:function`, to a task: environments of one's own, TRL's
environment factories, and verifiers' tasksets.
"""

from __future__ import annotations

import dataclasses
import inspect
import string
from collections.abc import Mapping
from functools import partial
from typing import Any

from rlkern.runs import code
from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import Chat
from rlkern.trainer.data.examples import Example
from rlkern.trainer.data.files import Record
from rlkern.trainer.data.source import Source, of_records, read_source
from rlkern.trainer.settings import Settings
from rlkern.trainer.tasks.conversation import Conversation, described_tools
from rlkern.trainer.tasks.environment import Environment
from rlkern.trainer.tasks.file import rows_task
from rlkern.trainer.tasks.task import Item, Task
from rlkern.trainer.tasks.trl_factory import TrlFactory
from rlkern.trainer.tasks.verifiers_taskset import of_taskset

_INSTALLS = {"verifiers": "pip install verifiers"}
# Keys of a file that a task, which makes its own items, does not read.
_OF_ROWS = ("columns", "system", "chat", "stop", "max_prompt", "template", "train")


def own_task(settings: Settings) -> Task:
    """Returns the task of an environment; Raises UserError, which names it, for what is none."""
    name, shown = settings.task, settings.asked
    made = _made(name, settings)
    if isinstance(made, Task):
        return _as_it_is(made, shown, settings)
    env = _environment(made, shown)
    # What is said in turns is messages, whatever the prompts of the rows are.
    chats = settings.data.model_copy(update={"chat": True})
    settings = settings.model_copy(update={"data": chats})
    if env.score is None and "task" in settings.reward.functions:
        raise UserError(
            f"environment {shown} has no score (TRL's get_reward), and --reward task needs it: add"
            " one, or name another --reward"
        )
    found = rows_task(_source(env, shown, settings), settings)
    return dataclasses.replace(
        found,
        name=shown,
        # What it will reply, and calls of tools, are not in its rows.
        alphabet="".join(sorted({*found.alphabet, *string.printable[:97]})),
        begin=partial(_begin, env, shown),
        max_turns=env.max_turns,
        max_new_tokens=env.max_new_tokens,
        chat=True,
    )


def _made(name: str, settings: Settings) -> Any:
    """Returns what a name names; of a function what it makes with data.options, and with seed and
    eval_items where it takes them."""
    try:
        found = code.load(name, "task")
    except UserError as error:
        missing = getattr(error.__cause__, "name", None)
        hint = _INSTALLS.get(str(missing).partition(".")[0])
        raise UserError(f"{error}: {hint}" if hint else str(error)) from error
    options = dict(settings.data.options)
    if not callable(found):
        if options:
            raise UserError(f"task {name!r} is no function, and data.options has nobody to go to")
        return found
    taken = inspect.signature(found).parameters
    usual = {"seed": settings.seed, "eval_items": settings.eval.items}
    given = {**{key: x for key, x in usual.items() if key in taken}, **options}
    try:
        inspect.signature(found).bind(**given)
    except TypeError as error:
        raise UserError(
            f"task {name!r} takes {', '.join(taken) or 'nothing'} (data.options), got"
            f" {', '.join(given) or 'nothing'}: {error}"
        ) from error
    if _resets(found):
        return TrlFactory(partial(found, **given), settings.asked)
    try:
        made = found(**given)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"task {name!r} {code.described(error, found)}") from error
    return TrlFactory(partial(found, **given), settings.asked) if _resets(made) else made


def _resets(found: Any) -> bool:
    """Returns whether this is an environment of TRL, or its class."""
    return callable(getattr(found, "reset", None)) and not isinstance(found, (Task, Environment))


def _as_it_is(made: Task, name: str, settings: Settings) -> Task:
    plain = type(settings.data)()
    for key in _OF_ROWS:
        if getattr(settings.data, key) != getattr(plain, key):
            raise UserError(
                f"environment {name} is a Task, which makes its own items and does not read"
                f" data.{key}; leave it out"
            )
    return made


def _environment(made: Any, name: str) -> Environment | TrlFactory:
    if isinstance(made, (Environment, TrlFactory)):
        return made
    found = of_taskset(made, name)
    if found is None:
        lacks = "" if hasattr(made, "score") else "; it has no score"
        raise UserError(
            f"environment {name} must be an rlkern.trainer.tasks.environment.Environment, a Task, a"
            f" class with reset (TRL's) or a taskset of verifiers, got {type(made).__name__}{lacks}"
        )
    return found


def _source(env: Environment | TrlFactory, name: str, settings: Settings) -> Source:
    if env.items is None:
        if settings.data.train is None:
            raise UserError(f"environment {name} has no items: add --data.train FILE")
        found = read_source(settings)
    elif settings.data.train is not None:
        raise UserError(f"environment {name} has items of its own: leave data.train out")
    else:
        found = of_records(_records(env.items, name), name, settings)
    tools = described_tools(env.tools_by_name(), name)
    train, held_out = (
        [_put(env, example, tools, name) for example in part]
        for part in (found.train, found.held_out)
    )
    return dataclasses.replace(found, train=train, held_out=held_out)


def _records(items: Any, name: str) -> list[Record]:
    found = list[Record]()
    for number, row in enumerate(items, 1):
        if not isinstance(row, Mapping):
            raise UserError(
                f"environment {name}, item {number} must be a mapping with a prompt, got"
                f" {type(row).__name__}"
            )
        found.append(Record(f"{name}, item {number}", dict(row)))
    if not found:
        raise UserError(f"environment {name} must have items, it has none")
    return found


def _put(env: Environment | TrlFactory, example: Example, tools: list[dict], name: str) -> Example:
    """Returns a row with the tools in its prompt, and what the environment says first."""
    if not isinstance(example.prompt, Chat):
        raise UserError(
            f"{example.where}: environment {name} uses messages, so its prompts cannot be text"
            " in a template; leave data.template out"
        )
    said = env.opening(example.columns)
    asked = example.prompt.messages
    if said:
        last = asked[-1]
        asked = (*asked[:-1], {**last, "content": (last.get("content") or "") + said})
    chat = Chat(asked, (*example.prompt.tools, *tools))
    return dataclasses.replace(example, prompt=chat)


def _begin(env: Environment | TrlFactory, name: str, item: Item) -> Conversation:
    assert item.row is not None  # a row of a file or of the environment
    return env.begin(name, item.row.columns)
