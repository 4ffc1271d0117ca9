# SPDX-License-Identifier: Apache-2.0
"""How likely a policy makes held-out answers of a file: what supervised steps on it are measured
by, since another answer than the given one need not be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

import rlkern
from rlkern import CompanionLogprob
from rlkern.trainer.models.policy import Policy, hidden_states, without_gradient
from rlkern.trainer.parts import Parts
from rlkern.trainer.rows import Rows


def likelihood(parts: Parts, held_out: Iterable[Rows]) -> dict[str, float]:
    """Returns eval/loss, the mean −log π of the tokens that count in held-out answers, and
    eval/token_accuracy, the share of them that the policy finds likeliest, which is eval/accuracy.
    """
    settings, found = parts.settings, list[Tensor]()
    for rows in held_out:
        found.append(
            without_gradient(
                lambda part: _sums(parts.policy, part, settings.memory.share_prompts),
                rows,
                world=parts.world,
                parts=settings.batch.micro_batches,
            )
        )
    loss, right, count = torch.cat(found).double().sum(0).tolist()
    accuracy = right / count
    return {
        "eval/accuracy": accuracy,
        "eval/token_accuracy": accuracy,
        "eval/loss": loss / count,
    }


def _sums(policy: Policy, rows: Rows, share_prompts: bool) -> Tensor:
    """Returns (B, 3) by answer: the sum of −log π, the tokens that are likeliest, the tokens."""
    hidden = hidden_states(policy, rows, share_prompts=share_prompts)
    head = policy.head.parameters()
    with policy.precision():
        found = rlkern.linear_token_logprob(
            hidden, head.pop("weight"), rows.token, mask=rows.mask, companions=True, **head
        )
    assert isinstance(found, CompanionLogprob)
    return torch.stack([x.sum(-1) for x in (-found.logprob, found.is_argmax, rows.mask)], -1)
