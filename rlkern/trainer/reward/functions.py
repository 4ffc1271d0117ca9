# SPDX-License-Identifier: Apache-2.0
"""Rewards: functions f(prompts, completions, **columns) -> list[float | None], and what becomes of
their numbers.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlkern.runs.errors import RewardError, UserError
from rlkern.runs.settings.message import nearest
from rlkern.trainer.device import resolve_device
from rlkern.trainer.reward import graders
from rlkern.trainer.reward.apart import Apart
from rlkern.trainer.reward.asking import Awaited, Limited, Limits, described, is_async
from rlkern.trainer.reward.model import load_reward_model
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings
from rlkern.trainer.tasks.task import Item, Task

RewardFunction = Callable[..., "list[float | None]"]

TASK = "task"


def task_reward(task: Task) -> RewardFunction:
    """Returns the task's own reward: 1 for a right answer, 0 otherwise."""

    def exact_match(
        prompts: list[str], completions: list[str], item: list[Item]
    ) -> list[float | None]:
        return [task.score(text, one) for text, one in zip(completions, item, strict=True)]

    return exact_match


@dataclass
class Rewards:
    """The reward functions of a run, each with the weight its rewards have in the sum, and the
    seconds that asking them took so far."""

    functions: list[RewardFunction]
    weights: list[float]
    seconds: float = 0.0

    @property
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

    @property
    def late(self) -> int:
        """Returns how often an answer cost a function more than its time."""
        return sum(each.late for each in self.functions if isinstance(each, Limited))


def load_rewards(settings: Settings, task: Task) -> Rewards:
    """Returns the rewards that the settings name: task, module:function or a reward model's
    folder."""
    names, weights = settings.reward.functions, settings.reward.weights
    return Rewards(
        [_find(name, settings, task) for name in names], list(weights or [1.0] * len(names))
    )


def _find(name: str, settings: Settings, task: Task) -> RewardFunction:
    if name == TASK:
        return task_reward(task)
    if (grader := graders.named(name)) is not None:
        return grader
    if ":" not in name and (Path(name) / "config.json").is_file():
        device = resolve_device(settings.device)
        return load_reward_model(Path(name), device=device, dtype=settings.dtype)
    return limited(_load(name), Limits(settings.reward.timeout, settings.reward.workers))


def _load(name: str) -> RewardFunction:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(
            f"reward.functions must be task, {', '.join(graders.NAMES)}, module:function or the"
            f" folder of a reward model, got {name!r}{nearest(name, ('task', *graders.NAMES))}"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward {name!r} cannot be imported: {error}") from error
    except Exception as error:
        raise UserError(
            f"reward {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise UserError(f"reward {name!r} must be a function, got {type(found).__name__}")
    return found


def limited(function: RewardFunction, limits: Limits) -> RewardFunction:
    """Returns a reward function that asks a user's one under these limits: one for coroutines, one
    for processes, or the function itself if there are no limits."""
    if is_async(function):
        return Awaited(function, limits)
    return Apart(function, limits) if limits.apart else function


def reward_name(function: Callable[..., object]) -> str:
    """Returns the name a function's rewards are logged under."""
    return getattr(function, "__name__", type(function).__name__)


def score_completions(
    rewards: Rewards,
    items: list[Item],
    completions: list[str],
    ids: dict[str, list[list[int]]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the weighted sum (B,) of all functions' rewards for each completion, and the rewards
    (B, F) by function.

    ids are more columns: prompt_ids and completion_ids, the tokens of each answer.

    None means that a function cannot score a completion; the reward is NaN if none that counts can.
    A function of weight 0 is asked and logged, and has no part in the sum.
    """
    columns = {**(ids or {}), **_columns(items)}
    prompts = [item.prompt for item in items]
    rows = [_call(function, prompts, completions, columns) for function in rewards.functions]
    by_function = torch.tensor(rows, dtype=torch.float32).view(len(rows), len(completions))
    counted = by_function[[weight != 0 for weight in rewards.weights]]
    weights = torch.tensor([[weight] for weight in rewards.weights if weight != 0])
    unscored = counted.isnan().all(0)
    return torch.where(unscored, torch.nan, (weights * counted).nansum(0)), by_function.T


def _columns(items: list[Item]) -> dict[str, list]:
    names = {name for item in items for name in item.columns}
    columns = {name: [item.columns.get(name) for item in items] for name in sorted(names)}
    return {"answer": [item.answer for item in items], "item": items, **columns}


def _call(
    function: RewardFunction, prompts: list[str], completions: list[str], columns: dict
) -> list[float]:
    """Returns a function's rewards with NaN for None; Raises RewardError, which names the function,
    for anything else.
    """
    name = reward_name(function)
    try:
        values = list(
            function(prompts=prompts, completions=completions, **_wanted(function, columns))
        )
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"reward function {name} {described(error, function)}") from error
    if len(values) != len(completions):
        raise RewardError(
            f"reward function {name} must return {len(completions)} rewards, got {len(values)}"
        )
    return [_number(name, index, value) for index, value in enumerate(values)]


def _wanted(function: RewardFunction, columns: dict) -> dict:
    """Returns the columns a function takes: all of them if it has **columns."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return columns
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return columns
    return {name: values for name, values in columns.items() if name in parameters}


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
