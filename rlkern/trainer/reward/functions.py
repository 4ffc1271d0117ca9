# SPDX-License-Identifier: Apache-2.0
"""Rewards: functions f(prompts, completions, **columns) -> list[float | None], and what becomes of
their numbers.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rlkern.runs.code import described, is_code, load
from rlkern.runs.device import resolve_device
from rlkern.runs.errors import RewardError, UserError
from rlkern.runs.settings.names import nearest
from rlkern.trainer.data.chat import ASSISTANT, Message
from rlkern.trainer.models.stored import folder_of
from rlkern.trainer.reward import graders
from rlkern.trainer.reward.apart import Apart
from rlkern.trainer.reward.asking import Awaited, Limited, Limits, is_async, reward_name
from rlkern.trainer.reward.model import load_reward_model
from rlkern.trainer.reward.signatures import (
    as_messages,
    check_parameters,
    of_verl,
    reads_text,
    wanted,
    wants_text,
)
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings
from rlkern.trainer.tasks.task import Item, Task

RewardFunction = Callable[..., "list[float | None]"]

TASK = "task"


def task_reward(task: Task) -> RewardFunction:
    """Returns the task's own reward: 1 for a right answer, 0 otherwise; of an environment what it
    says itself."""

    if task.begin is not None:
        return environment_reward(task)

    @reads_text
    def exact_match(
        prompts: list[str], completions: list[str], item: list[Item]
    ) -> list[float | None]:
        return [task.score(text, one) for text, one in zip(completions, item, strict=True)]

    return exact_match


def environment_reward(task: Task) -> RewardFunction:
    """Returns what the environment says of a conversation, of an answer that is none as of its only
    message."""

    @reads_text
    def environment(
        prompts: list[str],
        completions: list[str],
        item: list[Item],
        verdict: list[float | None] | None = None,
    ) -> list[float | None]:
        assert task.begin is not None
        if verdict is not None:
            return verdict
        both = zip(completions, item, strict=True)
        said = [([{"role": ASSISTANT, "content": text}], task.begin(one)) for text, one in both]
        return [talk.verdict(transcript) for transcript, talk in said]

    return environment


@dataclass
class Rewards:
    """The reward functions of a run, each with the weight its rewards have in the sum, and the
    seconds that asking them took so far."""

    functions: list[RewardFunction]
    weights: list[float]
    seconds: float = 0.0

    @cached_property
    def names(self) -> list[str]:
        """Returns what each function's rewards are logged under: its name, and for the second of a
        name a number after it."""
        plain = [reward_name(function) for function in self.functions]
        before = [plain[:place].count(name) for place, name in enumerate(plain)]
        return [f"{name}_{n + 1}" if n else name for name, n in zip(plain, before)]

    @property
    def timed(self) -> bool:
        """Returns whether a function has a limited time for an answer."""
        return any(each.limits.timeout > 0 for each in self.functions if isinstance(each, Limited))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Adds the seconds that pass to those of asking."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    @property
    def late(self) -> int:
        """Returns how often an answer cost a function more than its time."""
        return sum(each.late for each in self.functions if isinstance(each, Limited))


def load_rewards(settings: Settings, task: Task) -> Rewards:
    """Returns the rewards that the settings name: task, a grader, a function or a reward model's
    folder."""
    names, weights = settings.reward.functions, settings.reward.weights
    return Rewards(
        [_find(name, settings, task) for name in names], list(weights or [1.0] * len(names))
    )


def _find(name: str, settings: Settings, task: Task) -> RewardFunction:
    if name == TASK:
        return task_reward(task)
    if (grader := graders.named(name)) is not None:
        return reads_text(grader)
    if ":" not in name and (folder := folder_of(name)) is not None:
        device = resolve_device(settings.device)
        return load_reward_model(folder, device=device, dtype=settings.dtype)
    return limited(_own(name, task), Limits(settings.reward.timeout, settings.reward.workers))


def _own(name: str, task: Task) -> RewardFunction:
    """Returns a person's function as one of lists; Raises UserError if it is none, or needs an
    argument that nothing gives it."""
    if not is_code(name):
        raise UserError(
            f"reward.functions must be task, {', '.join(graders.NAMES)}, FILE.py:function,"
            f" module:function or a reward model (a run, a folder, a hub's id in the cache), got"
            f" {name!r}{nearest(name, ('task', *graders.NAMES))}"
        )
    found = load(name, "reward")
    if not callable(found):
        raise UserError(f"reward {name!r} must be a function, got {type(found).__name__}")
    found = of_verl(found, task.name)
    items = [*(task.rows or ()), *task.held_out]
    columns = {column for item in items for column in item.columns}
    columns |= {"verdict"} if task.begin is not None else set()
    check_parameters(found, name, columns, task.name)
    return found


def limited(function: RewardFunction, limits: Limits) -> RewardFunction:
    """Returns a reward function that asks a user's one under these limits: one for coroutines, one
    for processes, or the function itself if there are no limits."""
    if is_async(function):
        return Awaited(function, limits)
    return Apart(function, limits) if limits.apart else function


def score_completions(
    rewards: Rewards,
    items: list[Item],
    completions: list[str],
    ids: dict[str, list] | None = None,
    transcript: list[list[Message]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the weighted sum (B,) of all functions' rewards for each completion, and the rewards
    (B, F) by function.

    ids are more columns: prompt_ids and completion_ids, the tokens of each answer. transcript is
    what was said in each conversation, by all of its speakers.

    None means that a function cannot score a completion; the reward is NaN if none that counts can.
    A function of weight 0 is asked and logged, and has no part in the sum.
    """
    columns = {**(ids or {}), **_columns(items)}
    prompts = [item.prompt for item in items]
    texts, spoken = (prompts, completions), as_messages(items, prompts, completions, transcript)
    rows = []
    for function in rewards.functions:
        asked, said = texts if wants_text(function) else spoken
        rows.append(_call(function, asked, said, columns))
    by_function = torch.tensor(rows, dtype=torch.float32).view(len(rows), len(completions))
    counted = by_function[[weight != 0 for weight in rewards.weights]]
    weights = torch.tensor([[weight] for weight in rewards.weights if weight != 0])
    unscored = counted.isnan().all(0)
    return torch.where(unscored, torch.nan, (weights * counted).nansum(0)), by_function.T


def _columns(items: list[Item]) -> dict[str, list]:
    names = {name for item in items for name in item.columns}
    columns = {name: [item.columns.get(name) for item in items] for name in sorted(names)}
    return {"answer": [item.answer for item in items], "item": items, **columns}


def _call(function: RewardFunction, prompts: list, completions: list, columns: dict) -> list[float]:
    """Returns a function's rewards with NaN for None; Raises RewardError, which names the function,
    for anything else.
    """
    name = reward_name(function)
    try:
        found = function(prompts=prompts, completions=completions, **wanted(function, columns))
        values = list(found) if isinstance(found, Iterable) else None
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"reward function {name} {described(error, function)}") from error
    if values is None:
        raise RewardError(
            f"reward function {name} must return {len(completions)} rewards in a list, got"
            f" {found!r:.60}"
        )
    if len(values) != len(completions):
        raise RewardError(
            f"reward function {name} must return {len(completions)} rewards, got {len(values)}"
        )
    return [_number(name, index, value) for index, value in enumerate(values)]


def _number(name: str, index: int, value: object) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise RewardError(
            f"reward function {name} must return finite numbers or None, got {value!r}"
            f" for completion {index}"
        )
    return number


def reward_statistics(rows: Rows, rewards: Rewards) -> dict[str, float]:
    """Returns reward, reward_std, frac_reward_zero_std and each function's mean and spread."""
    assert rows.reward is not None and rows.rewards is not None  # rows of a rollout
    spread = _nanstd(rows.reward.view(-1, rows.group_size))
    values = {
        "reward": rows.reward.nanmean().nan_to_num().item(),
        "reward_std": spread.mean().item(),
        "frac_reward_zero_std": (spread == 0).float().mean().item(),
        "rewards/unscorable": rows.reward.isnan().float().mean().item(),
    }
    for name, row in zip(rewards.names, rows.rewards.T, strict=True):
        values[f"rewards/{name}/mean"] = row.nanmean().nan_to_num().item()
        values[f"rewards/{name}/std"] = _nanstd(row[None])[0].item()
    return values


def _nanstd(x: Tensor) -> Tensor:
    """Returns the standard deviation of each row over its numbers (ddof 1); 0 for fewer than
    two.
    """
    count = (~x.isnan()).sum(-1, keepdim=True)
    centered = (x - x.nanmean(-1, keepdim=True)).nan_to_num()
    # Equal rewards must give exactly 0, which rounding of their mean would spoil.
    same = (x.nan_to_num(nan=torch.inf).amin(-1) == x.nan_to_num(nan=-torch.inf).amax(-1)) | (
        count[:, 0] < 2
    )
    std = (centered.square().sum(-1) / (count[:, 0] - 1).clamp(min=1)).sqrt()
    return torch.where(same, 0.0, std)
