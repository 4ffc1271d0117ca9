# SPDX-License-Identifier: Apache-2.0
"""The numbers and sentences that describe a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import rlkern
from rlkern.runs.errors import RewardError, UserError
from rlkern.trainer.parts import Parts
from rlkern.trainer.rows import Rows, finished
from rlkern.trainer.settings import Settings
from rlkern.trainer.show.completions import question
from rlkern.trainer.update import StepResult, rates

Sample = tuple[str, str, float]


@dataclass(frozen=True)
class StepAnswers:
    """The answers of a step: some of them for a person, and where they were sampled the rows of all
    that the step learns from, before copies of groups."""

    samples: list[Sample]
    rows: Rows | None = None


# The share of answers cut off from which a step says so.
_CUT_OFF = 0.9
# The share of weights that a step may leave as they are.
_MOST_UNCHANGED = 0.5


class Stopwatch:
    """Splits a step's time into named parts."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Adds the time since the last call to `name`; kernels still running on a GPU belong
        to it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[f"time/{name}"] = self.seconds.get(f"time/{name}", 0.0) + now - self._last
        self._last = now

    def move(self, source: str, target: str, seconds: float) -> None:
        """Counts seconds of one part, measured inside it, as another's."""
        self.seconds[f"time/{source}"] -= seconds
        self.seconds[f"time/{target}"] = self.seconds.get(f"time/{target}", 0.0) + seconds


def note_unscored(parts: Parts, rows: Rows, warn: Callable[[str], None]) -> None:
    """Counts and says that no answer of a rollout has a reward; Raises RewardError if so many in a
    row had none."""
    assert rows.reward is not None and rows.advantage is not None
    progress, limit = parts.progress, parts.settings.reward.degenerate_limit
    if not rows.reward.isnan().all() or rows.advantage.any():
        progress.unscored_rollouts = 0
        return
    progress.unscored_rollouts += 1
    why = "no reward function could score any answer: all said None, or took too long"
    if limit and progress.unscored_rollouts >= limit:
        raise RewardError(f"in each of the last {limit} rollouts {why}")
    if progress.unscored_rollouts == 1:
        warn(f"step {progress.step + 1}: {why}, so this rollout teaches nothing")


def note(
    parts: Parts,
    results: list[StepResult],
    degenerate: bool,
    reward: float,
    warn: Callable[[str], None],
) -> None:
    """Counts and says what went wrong in a step; Raises UserError if there never was anything to
    learn from."""
    progress, limit = parts.progress, parts.settings.reward.degenerate_limit
    skipped = sum(result.skipped for result in results)
    if skipped:
        warn(
            f"step {progress.step}: loss or gradient was not finite,"
            f" {skipped} of {len(results)} updates skipped"
            f" ({progress.skipped_updates} so far)"
        )
    share = max((result.unchanged or 0.0 for result in results), default=0.0)
    if share > _MOST_UNCHANGED and (progress.step == 1 or progress.step % 50 == 0):
        warn(
            f"step {progress.step}: {share:.0%} of the bfloat16 weights did not change, since they"
            f" round by more than a step of the learning rate ({parts.settings.optimizer.lr:g} at"
            " most); --dtype mixed keeps them in float32"
        )
    if not degenerate:
        return
    progress.degenerate_steps += 1
    if limit and progress.step <= limit and progress.degenerate_steps == limit:
        raise UserError(
            f"in each of the first {limit} rollouts all completions of a prompt had the same reward"
            f" (mean {reward:g} in the last), so there is nothing to learn from;"
            " look at the reward function, the prompts and the temperature"
        )
    if progress.degenerate_steps == 1 or progress.degenerate_steps % 50 == 0:
        warn(
            f"step {progress.step}: all completions of each prompt had the same reward,"
            f" so this rollout teaches nothing ({progress.degenerate_steps} such rollouts so far)"
        )


def update_values(parts: Parts, results: list[StepResult]) -> dict[str, float]:
    """Returns what the optimizer steps on one rollout report, averaged over them."""
    progress, settings = parts.progress, parts.settings
    values: dict[str, float] = {}
    policy = [vector for result in results for vector in result.metrics]
    if policy:
        values.update(rlkern.metrics_dict(rlkern.merge_metrics(policy)))
        values.pop("num_tokens", None)
    critic = [result.value_metrics for result in results if result.value_metrics is not None]
    if critic:
        found = rlkern.value_metrics_dict(torch.stack(critic).sum(0))
        values["critic/vf_loss"] = sum(r.value_loss for r in results) / len(results)
        values["critic/vf_explained_var"] = found["explained_variance"]
        values["critic/vpred_mean"] = found["value_mean"]
        values["critic/vf_clipfrac"] = found["clip_fraction"]
    for result in results:
        values.update(result.differences)
    unchanged = [result.unchanged for result in results if result.unchanged is not None]
    if unchanged:
        values["unchanged_weights"] = sum(unchanged) / len(unchanged)
    count = max(1, len(results))
    rate = rates(settings, max(0, progress.update - 1))["policy"]
    return {
        **values,
        "loss": sum(result.loss for result in results) / count,
        "grad_norm": sum(result.grad_norm for result in results) / count,
        "learning_rate": rate * settings.optimizer.lr,
        "num_tokens": progress.num_tokens,
        "degenerate_steps": progress.degenerate_steps,
        "skipped_updates": progress.skipped_updates,
    }


def completion_statistics(rows: Rows, stop: torch.Tensor) -> dict[str, float]:
    """Returns lengths of all answers and of those that ended by themselves, and who was cut off."""
    length = rows.mask.sum(-1)
    ended = finished(rows, stop)
    terminated = length[ended] if ended.any() else length.new_zeros(1)
    values = {"completions/clipped_ratio": 1.0 - ended.float().mean().item()}
    for name, lengths in (("length", length), ("terminated_length", terminated)):
        values[f"completions/mean_{name}"] = lengths.float().mean().item()
        values[f"completions/min_{name}"] = float(lengths.min())
        values[f"completions/max_{name}"] = float(lengths.max())
    return values


def note_cut_off(parts: Parts, share: float, warn: Callable[[str], None]) -> None:
    """Counts a step that cut nearly all of its answers off, and says so with the key to change, the
    first time and every fiftieth."""
    progress, sampling = parts.progress, parts.sampling
    if share < _CUT_OFF:
        return
    progress.cut_off_steps += 1
    if progress.cut_off_steps == 1 or progress.cut_off_steps % 50 == 0:
        warn(
            f"step {progress.step}: {share:.0%} of the answers were cut off at"
            f" {sampling.max_new_tokens} tokens before they ended; raise rollout.max_new_tokens, or"
            f" see whether the model knows how an answer ends ({progress.cut_off_steps} such steps"
            " so far)"
        )


def pick_samples(rows: Rows, settings: Settings) -> list[Sample]:
    """Returns two answers, the best and the worst, to each of the first four questions."""
    assert rows.shaped_reward is not None and rows.item is not None and rows.text is not None
    reward, G, picked = rows.shaped_reward.tolist(), rows.group_size, list[Sample]()
    asked = [question(item, settings) for item in rows.item[: 4 * G : G]]
    for prompt, first in zip(asked, range(0, len(reward), G)):
        scored = [i for i in range(first, first + G) if not math.isnan(reward[i])] or [first]
        ends = (max(scored, key=reward.__getitem__), min(scored, key=reward.__getitem__))
        picked += [(prompt, rows.text[i], reward[i]) for i in dict.fromkeys(ends)]
    return picked
