# SPDX-License-Identifier: Apache-2.0
"""One step: rollout, reward, scores, updates, and the numbers that describe it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

import rlkern
from rlkern.trainer.errors import UserError
from rlkern.trainer.reward import advantages, reward_statistics, score_completions
from rlkern.trainer.rollout import Rollout, Sampling, encode, texts
from rlkern.trainer.sampler import random_numbers, sample
from rlkern.trainer.scoring import score
from rlkern.trainer.session import Session
from rlkern.trainer.step import Batch, StepResult, learning_rate, optimizer_step, pieces

Sample = tuple[str, str, float]


class Stopwatch:
    """Splits a step's time into named parts."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last call to `name`; kernels still running on a GPU belong
        to it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[f"time/{name}"] = self.seconds.get(f"time/{name}", 0.0) + now - self._last
        self._last = now


def iterate(session: Session, warn: Callable[[str], None]) -> tuple[dict[str, float], list[Sample]]:
    """Returns the metrics and some samples of the next step; the session moves one step on."""
    config, progress, policy = session.config, session.progress, session.policy
    watch = Stopwatch(policy.device)
    distinct, position = session.task.next_items(progress.position, config.prompts)
    sampling = Sampling(
        session.max_new_tokens, session.stop, config.temperature, config.top_k, config.top_p
    )
    rollout = sample(
        policy,
        encode(policy, [item.prompt for item in distinct], max_new_tokens=session.max_new_tokens),
        sampling,
        group_size=config.group_size,
        uniform=random_numbers(session.generator, len(distinct) * config.group_size, sampling),
    )
    completions = texts(policy, rollout)
    watch.lap("rollout")
    items = [item for item in distinct for _ in range(config.group_size)]
    scored = score_completions(session.rewards, items, completions)
    advantage = advantages(
        scored.reward.to(policy.device), config.group_size, session.algorithm.advantage
    )
    watch.lap("reward")
    batch = make_batch(session, rollout, advantage)
    watch.lap("score")
    results = [_update(session, batch) for _ in range(config.epochs or 1)]
    progress.step += 1
    progress.position = position
    progress.num_tokens += _tokens(rollout)
    values = reward_statistics(scored, session.rewards, config.group_size)
    degenerate = not advantage.any().item()
    _note(session, results, degenerate, values["reward"], warn)
    watch.seconds["time/loss"] = sum(result.loss_seconds for result in results)
    watch.seconds["time/step"] = sum(result.step_seconds for result in results)
    values.update(_loss_values(session, results), **completion_statistics(rollout, session.stop))
    values.update(sampler_difference(batch))
    values.update(watch.seconds, step_time=sum(watch.seconds.values()))
    return values, pick_samples(items, completions, scored.reward.tolist(), config.group_size)


def make_batch(session: Session, rollout: Rollout, advantage: torch.Tensor) -> Batch:
    """Returns what the loss needs; old and reference log-probabilities only where the loss reads
    them.
    """
    config = session.config
    constant = (
        session.max_new_tokens if session.algorithm.aggregation == "sequence_token_sum" else None
    )
    split = pieces(config.prompts, config.micro_batches)

    def scored(policy):
        return score(
            policy,
            rollout,
            temperature=config.temperature,
            share_prompts=config.share_prompts,
            pieces=split,
        )

    return Batch(
        rollout=rollout,
        advantage=advantage,
        weight=rlkern.aggregate.token_weight(
            rollout.mask, session.algorithm.aggregation, constant=constant
        ),
        old_logprob=scored(session.policy) if (config.epochs or 1) > 1 else None,
        ref_logprob=scored(session.reference) if session.reference is not None else None,
    )


def _update(session: Session, batch: Batch) -> StepResult:
    progress = session.progress
    rate = learning_rate(session.config, progress.update)
    result = optimizer_step(
        session.policy, session.optimizer, batch, session.config, session.coefficients, lr=rate
    )
    progress.update += 1
    progress.skipped_updates += result.skipped
    return result


def _note(
    session: Session, results: list[StepResult], degenerate: bool, reward: float, warn: Callable
) -> None:
    """Count and say what went wrong in a step; stop when nothing was ever there to learn from."""
    progress, limit = session.progress, session.config.degenerate_limit
    skipped = sum(result.skipped for result in results)
    if skipped:
        warn(
            f"step {progress.step}: loss or gradient was not finite,"
            f" {skipped} of {len(results)} updates skipped"
            f" ({progress.skipped_updates} so far)"
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


def _loss_values(session: Session, results: list[StepResult]) -> dict[str, float]:
    progress = session.progress
    values = rlkern.metrics_dict(rlkern.merge_metrics([result.metrics for result in results]))
    values.pop("num_tokens", None)
    for result in results:
        values.update(result.differences)
    return {
        **values,
        "loss": sum(result.loss for result in results) / len(results),
        "grad_norm": sum(result.grad_norm for result in results) / len(results),
        "learning_rate": learning_rate(session.config, progress.update - 1),
        "num_tokens": progress.num_tokens,
        "degenerate_steps": progress.degenerate_steps,
        "skipped_updates": progress.skipped_updates,
    }


def _tokens(rollout: Rollout) -> int:
    """Returns the tokens of a rollout, each prompt counted once for each of its completions."""
    return int(rollout.prompts.mask.sum() * rollout.group_size + rollout.mask.sum())


def completion_statistics(rollout: Rollout, stop: torch.Tensor) -> dict[str, float]:
    """Returns lengths of all completions and of those that ended by themselves, and the share cut
    short.
    """
    length = rollout.mask.sum(-1)
    ended = (torch.isin(rollout.token, stop) & rollout.mask).any(-1)
    finished = length[ended] if ended.any() else length.new_zeros(1)
    values = {"completions/clipped_ratio": 1.0 - ended.float().mean().item()}
    for name, lengths in (("length", length), ("terminated_length", finished)):
        values[f"completions/mean_{name}"] = lengths.float().mean().item()
        values[f"completions/min_{name}"] = float(lengths.min())
        values[f"completions/max_{name}"] = float(lengths.max())
    return values


def sampler_difference(batch: Batch) -> dict[str, float]:
    """Returns how far the sampler's log-probabilities are from the scored ones, if any."""
    if batch.old_logprob is None:
        return {}
    rollout = batch.rollout
    difference = (batch.old_logprob - rollout.rollout_logprob).abs()[rollout.mask]
    return {
        "sampling/sampling_logp_difference/mean": difference.mean().item(),
        "sampling/sampling_logp_difference/max": difference.max().item(),
    }


def pick_samples(
    items: list, completions: list[str], rewards: list[float], group_size: int
) -> list[Sample]:
    """Returns two completions, the best and the worst, of each of the first four prompts."""
    picked = []
    for first in range(0, min(len(items), 4 * group_size), group_size):
        rows = [i for i in range(first, first + group_size) if not math.isnan(rewards[i])] or [
            first
        ]
        for row in dict.fromkeys(
            (max(rows, key=rewards.__getitem__), min(rows, key=rewards.__getitem__))
        ):
            picked.append((items[row].prompt, completions[row], rewards[row]))
    return picked
