# SPDX-License-Identifier: Apache-2.0
"""Held-out accuracy: the share of held-out items whose completion the task's verifier accepts."""

from __future__ import annotations

import torch

from rlkern.trainer.config import Config
from rlkern.trainer.models import Policy
from rlkern.trainer.rollout import encode, sample, texts
from rlkern.trainer.tasks import Task


def evaluate(
    policy: Policy, task: Task, config: Config, *, stop: torch.Tensor, max_new_tokens: int
) -> dict:
    """Return eval/accuracy (the first of eval_modes) and eval/accuracy_<mode> for each mode.

    The sampler has a seed of its own, so that evaluating does not change the training.
    """
    values = {}
    for mode in config.eval_modes:
        generator = torch.Generator(policy.device).manual_seed(config.seed + 1)
        right = 0.0
        for first in range(0, len(task.held_out), config.eval_batch):
            items = task.held_out[first : first + config.eval_batch]
            rollout = sample(
                policy,
                encode(policy, [item.prompt for item in items], max_new_tokens=max_new_tokens),
                group_size=1,
                max_new_tokens=max_new_tokens,
                temperature=config.temperature if mode == "sampled" else 0.0,
                stop=stop,
                generator=generator,
            )
            right += sum(
                task.score(text, item)
                for text, item in zip(texts(policy, rollout), items, strict=True)
            )
        values[f"eval/accuracy_{mode}"] = right / len(task.held_out)
    return {"eval/accuracy": values[f"eval/accuracy_{config.eval_modes[0]}"], **values}
