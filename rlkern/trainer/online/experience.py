# SPDX-License-Identifier: Apache-2.0
"""What one rollout taught: answers, rewards and scores, all that advantages are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkern.trainer.reward import Scored
from rlkern.trainer.rollout.data import Rollout
from rlkern.trainer.tasks.task import Item


@dataclass
class Experience:
    """B = Q·G completions, those of a prompt in consecutive rows; the same on every process.

    rollout         tokens and masks, (B, T)
    items           B, the item that each completion answers
    completions     B texts
    scored          rewards as the functions gave them
    reward          (B,) float32, what is trained on: shaped, NaN where unscorable
    reward_kl_coef  weight of the KL to the reference in the reward
    old_logprob     (B, T) of the policy that sampled, by the trainer; None where nothing reads it
    ref_logprob     (B, T) of the starting model; None where nothing reads it
    value           (B, T) the critic's estimate before each token; None without a critic
    greedy_reward   (B,) of the greedy answer to the same prompt; None where nothing reads it
    optimal_value   (B,) V* of the prompt; None where nothing reads it
    """

    rollout: Rollout
    items: list[Item]
    completions: list[str]
    scored: Scored
    reward: Tensor
    reward_kl_coef: float = 0.0
    old_logprob: Tensor | None = None
    ref_logprob: Tensor | None = None
    value: Tensor | None = None
    greedy_reward: Tensor | None = None
    optimal_value: Tensor | None = None

    @property
    def group(self) -> Tensor:
        """Returns the prompt (B,) int64 that each completion answers."""
        return torch.arange(len(self.reward), device=self.reward.device) // self.rollout.group_size
