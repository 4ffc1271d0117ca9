# SPDX-License-Identifier: Apache-2.0
"""Given answers, as text, in the form of a rollout: what nobody sampled is scored the same way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlkern.trainer.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.data import Rollout, check_known, left_padded


def given_rollout(
    policy: Policy, prompts: Sequence[str], answers: Sequence[str], *, stop: str
) -> Rollout:
    """Returns answers as a rollout, len(answers) / len(prompts) consecutive ones to each prompt.

    An answer ends with the end-of-text token, unless it holds the text `stop` that ends one itself.
    """
    group = len(answers) // len(prompts)
    asked = [policy.tokenizer.encode(text) for text in prompts]
    rows = [_answer_ids(policy, text, stop) for text in answers]
    for index, row in enumerate(rows):
        _check(policy, asked[index // group], row, prompts[index // group], answers[index])
    width, fill = max(map(len, rows)), policy.tokenizer.pad_token_id
    token = torch.tensor([row + [fill] * (width - len(row)) for row in rows])
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in rows])
    token, mask = token.to(policy.device), mask.to(policy.device)
    return Rollout(left_padded(policy, asked), token, mask, torch.zeros_like(token).float())


def _answer_ids(policy: Policy, text: str, stop: str) -> list[int]:
    ids = policy.tokenizer.encode(text, add_special_tokens=False)
    return ids if stop and stop in text else [*ids, policy.tokenizer.eos_token_id]


def _check(policy: Policy, asked: list[int], row: list[int], prompt: str, answer: str) -> None:
    if not asked:
        raise UserError(f"a prompt must have at least one token, got {prompt!r}")
    check_known(policy, asked + row, prompt + answer)
    if len(asked) + len(row) > policy.context:
        raise UserError(
            f"a prompt of {len(asked)} tokens and an answer of {len(row)} do not fit the model's"
            f" context of {policy.context}: {prompt[:60]!r}"
        )
