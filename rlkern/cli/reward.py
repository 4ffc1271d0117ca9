# SPDX-License-Identifier: Apache-2.0
"""`rlkern reward`: a reward tried on some items before a run uses it."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rlkern.cli.guard import guarded, silence_hub
from rlkern.cli.parser import Parser, given
from rlkern.trainer.settings.keys import OF_DATA

if TYPE_CHECKING:
    from rlkern.trainer.reward.functions import Rewards
    from rlkern.trainer.tasks.task import Item, Task


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern reward`."""
    return guarded("reward", lambda: _try(arguments))


_KEYS = {
    "data.train": "file of the items",
    "data.system": "system message of every conversation",
    "data.chat": "whether a prompt that is text becomes a user's message",
    "data.template": "text around the columns of a prompt",
    "task": "task or environment of the items, where there is no data.train",
    "reward.timeout": "seconds for an answer; 0 has no limit",
    "reward.workers": "answers that are asked about at once",
    "seed": "seed of the items of a task",
}
_SOURCES = ("data.train", "task")


def _parser() -> Parser:
    parser = Parser(
        prog="rlkern reward",
        description="Ask a reward about some items as a run would: about their right answers, about"
        " empty ones, and about the answers of other items. Nothing is trained or written.",
        free=OF_DATA,
    )
    parser.add_argument(
        "reward", help="my_reward.py:function, module:function, math, exact, … with commas"
    )
    parser.add_argument("--items", type=int, default=10, help="items to try (default 10)")
    for key, says in _KEYS.items():
        parser.add_argument(f"--{key}", metavar="X", help=says, default=argparse.SUPPRESS)
    return parser


class Trial(NamedTuple):
    """What some items were answered, None for no such answer, and the rewards by function."""

    title: str
    said: list[str | None]
    rewards: list[list[float]]
    seconds: float

    def mean(self, function: int) -> float:
        """Returns the mean reward of one function over the answers that have one."""
        known = [row[function] for row in self.rewards if not math.isnan(row[function])]
        return sum(known) / len(known) if known else math.nan


def _try(arguments: list[str]) -> int:
    flags = given(_parser(), arguments)
    if flags is None:
        return 0
    from rlkern.runs.errors import UserError
    from rlkern.trainer.reward.functions import load_rewards
    from rlkern.trainer.settings import Layer, resolve
    from rlkern.trainer.settings.places import anchored
    from rlkern.trainer.tasks.registry import make_task

    name, count = flags.pop("reward"), flags.pop("items")
    if count < 1:
        raise UserError(f"items must be at least 1, got {count}")
    if not any(key in flags for key in _SOURCES):
        raise UserError("there is nothing to try it on: add --data.train FILE or --task NAME")
    if "data.train" in flags and "seed" in flags:
        raise UserError("seed is of the items of a task, and those of a file are its first: leave"
                        f" seed out, got {flags['seed']}")  # fmt: skip
    silence_hub()
    base = {"algorithm": "reinforce", "sft": None, "reward.functions": name, "eval.items": 1}
    settings = anchored(resolve(Layer("", base), Layer("flags", flags)))
    task = make_task(settings)
    rewards = load_rewards(settings, task)
    items = list(task.rows[:count]) if task.rows else task.next_items(0, count)[0]
    trials = [_asked(rewards, task, items, *kind) for kind in _kinds(items)]
    _print(rewards, items, trials, settings.asked)
    return 0


def _kinds(items: list[Item]) -> Iterator[tuple[str, list[str | None]]]:
    """Yields a title and an answer to each item: its own, an empty one, another item's."""
    from rlkern.trainer.data.chat import shown_answer

    own = [shown_answer(item.right) or None for item in items]
    others = [
        next((text for text in (*own[n + 1 :], *own[:n]) if text != own[n]), None)
        for n in range(len(items))
    ]
    yield "its answer", own
    yield "empty", [""] * len(items)
    yield "another's", others


def _asked(
    rewards: Rewards, task: Task, items: list[Item], title: str, said: list[str | None]
) -> Trial:
    """Returns what the rewards say of answers, asked in one call as in a run."""
    from rlkern.trainer.models.load import character_tokenizer
    from rlkern.trainer.reward.functions import score_completions

    # A run gives the model's own tokens; here they are those of the model tiny.
    encode: Any = character_tokenizer(task.alphabet).encode
    there = [n for n, text in enumerate(said) if text is not None]
    some, texts = [items[n] for n in there], [text for text in said if text is not None]
    ids = {
        "prompt_ids": [encode(item.prompt) for item in some],
        "completion_ids": [encode(text) for text in texts],
    }
    started = time.perf_counter()
    found = score_completions(rewards, some, texts, ids)[1].tolist() if some else []
    seconds = time.perf_counter() - started
    by_place = dict(zip(there, found, strict=True))
    nothing = [math.nan] * len(rewards.functions)
    return Trial(title, said, [by_place.get(n, nothing) for n in range(len(items))], seconds)


def _print(rewards: Rewards, items: list[Item], trials: list[Trial], asked: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for place, name in enumerate(rewards.names):
        table = Table(title=f"{name} on {len(items)} items of {asked}", title_justify="left")
        for column in ("item", "prompt (its end)", "answer"):
            table.add_column(column)
        for trial in trials:
            table.add_column(trial.title, justify="right")
        for n, item in enumerate(items):
            where = item.row.where.rpartition(", ")[2] if item.row is not None else str(n + 1)
            texts = [where, repr(item.prompt[-30:]), repr((trials[0].said[n] or "")[:30])]
            numbers = [_shown(trial.rewards[n][place]) for trial in trials]
            table.add_row(*map(Text, (*texts, *numbers)))
        table.add_section()
        table.add_row("mean", "", "", *(_shown(trial.mean(place)) for trial in trials))
        table.add_row("seconds", "", "", *(f"{trial.seconds:.3f}" for trial in trials))
        console.print(table)
        own, empty, other = (trial.mean(place) for trial in trials)
        if not own > max(empty, other) and not math.isnan(own):
            console.print(
                f"{name} gives right answers {_shown(own)}, empty ones {_shown(empty)} and others'"
                f" {_shown(other)}: see whether it reads the answer as the file writes it",
                soft_wrap=True,
            )


def _shown(reward: float) -> str:
    return "-" if math.isnan(reward) else f"{reward:.3f}"
