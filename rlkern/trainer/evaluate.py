# SPDX-License-Identifier: Apache-2.0
"""Accuracy: the share of items whose completion the task's verifier accepts."""

from __future__ import annotations

import torch

from rlkern.trainer.config import Config
from rlkern.trainer.models import Policy
from rlkern.trainer.rollout import Sampling, encode, texts
from rlkern.trainer.sampler import random_numbers, sample
from rlkern.trainer.tasks import Item, Task


def accuracy(
    policy: Policy,
    task: Task,
    items: list[Item],
    config: Config,
    *,
    mode: str,
    stop: torch.Tensor,
    max_new_tokens: int,
) -> float:
    """Returns the accuracy on items, with sampled or greedy completions.

    The sampler has a seed of its own, so that evaluating does not change the training.
    """
    generator = torch.Generator(policy.device).manual_seed(config.seed + 1)
    sampling = Sampling(max_new_tokens, stop, config.temperature, config.top_k, config.top_p)
    right = 0.0
    for first in range(0, len(items), config.eval_batch):
        part = items[first : first + config.eval_batch]
        sampled = mode == "sampled"
        rollout = sample(
            policy,
            encode(policy, [item.prompt for item in part], max_new_tokens=max_new_tokens),
            sampling if sampled else sampling.greedy(),
            group_size=1,
            uniform=random_numbers(generator, len(part), sampling) if sampled else None,
        )
        right += sum(task.score(text, item) for text, item in zip(texts(policy, rollout), part))
    return right / len(items)


def evaluate(
    policy: Policy, task: Task, config: Config, *, stop: torch.Tensor, max_new_tokens: int
) -> dict[str, float]:
    """Returns eval/accuracy_<mode> on held-out items for each of eval_modes, the first also as
    eval/accuracy.
    """
    values = {
        f"eval/accuracy_{mode}": accuracy(
            policy, task, task.held_out, config, mode=mode, stop=stop, max_new_tokens=max_new_tokens
        )
        for mode in config.eval_modes
    }
    return {"eval/accuracy": values[f"eval/accuracy_{config.eval_modes[0]}"], **values}
