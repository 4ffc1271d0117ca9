# SPDX-License-Identifier: Apache-2.0
"""Between text and rows of tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.trainer.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rows import Rows


class Prompts(NamedTuple):
    """Q prompts as left-padded rows: token (Q, P) int64; mask (Q, P) bool, True is a real token."""

    token: Tensor
    mask: Tensor


def encode(policy: Policy, texts: list[str], *, max_new_tokens: int) -> Prompts:
    """Returns prompts as rows; Raises UserError if one leaves no room for its answer."""
    # A tokenizer that begins every text with a special token begins prompts with it too.
    rows, context = [policy.tokenizer.encode(text) for text in texts], policy.context
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise UserError(f"a prompt must have at least one token, got {text!r}")
        check_known(policy, row, text)
        if len(row) + max_new_tokens > context:
            raise UserError(
                f"a prompt of {len(row)} tokens and {max_new_tokens} new ones do not fit the"
                f" model's context of {context}: {text[:60]!r}"
            )
    return left_padded(policy, rows)


def check_known(policy: Policy, ids: list[int], text: str) -> None:
    """Raises UserError for text that the model has no tokens for."""
    unknown = policy.tokenizer.unk_token_id
    # Some tokenizers, which know every byte, call their end of text unknown too.
    if unknown != policy.tokenizer.eos_token_id and unknown in ids:
        raise UserError(
            f"the model has no token for some of the text {text[:60]!r}; use another --model, or"
            " text in its alphabet"
        )


def left_padded(policy: Policy, rows: list[list[int]]) -> Prompts:
    """Returns rows of token ids as prompts."""
    width = max(map(len, rows))
    fill = policy.tokenizer.pad_token_id
    token = torch.tensor([[fill] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Prompts(token.to(policy.device), mask.to(policy.device))


def stop_tokens(policy: Policy, stop: str) -> Tensor:
    """Returns the ids that end an answer: eos, and every token whose text contains `stop`."""
    ids = {policy.tokenizer.eos_token_id}
    # A reward model, which generates nothing, has no such configuration.
    generation = getattr(policy.model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    if configured is not None:
        ids.update(configured if isinstance(configured, list) else [configured])
    if stop:
        texts = policy.tokenizer.batch_decode([[i] for i in range(len(policy.tokenizer))])
        ids.update(i for i, text in enumerate(texts) if stop in text)
    return torch.tensor(sorted(ids), device=policy.device)


def texts(policy: Policy, rows: Rows) -> list[str]:
    """Returns all that follows the prompts as text, without special tokens."""
    ids = [
        row[real].tolist() for row, real in zip(rows.token.cpu(), rows.present.cpu(), strict=True)
    ]
    return policy.tokenizer.batch_decode(ids, skip_special_tokens=True)


def token_ids(rows: Rows) -> dict[str, list[list[int]]]:
    """Returns prompt_ids and completion_ids, the real tokens of each answer and of its prompt: the
    very ones that the model read and wrote."""
    asked = [row[real].tolist() for row, real in zip(rows.prompt.cpu(), rows.prompt_mask.cpu())]
    said = [row[real].tolist() for row, real in zip(rows.token.cpu(), rows.present.cpu())]
    prompts = [ids for ids in asked for _ in range(rows.group_size)]
    return {"prompt_ids": prompts, "completion_ids": said}


def given_rows(policy: Policy, prompts: list[str], answers: list[str], *, stop: str) -> Rows:
    """Returns given answers as rows, len(answers) / len(prompts) consecutive ones to each prompt.

    An answer ends with the end-of-text token, unless it holds the text `stop` that ends one itself.
    """
    group = len(answers) // len(prompts)
    asked = [policy.tokenizer.encode(text) for text in prompts]
    ids = [_answer_ids(policy, text, stop) for text in answers]
    for index, row in enumerate(ids):
        _check(policy, asked[index // group], row, prompts[index // group], answers[index])
    width, fill = max(map(len, ids)), policy.tokenizer.pad_token_id
    token = torch.tensor([row + [fill] * (width - len(row)) for row in ids]).to(policy.device)
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in ids]).to(policy.device)
    prompt, prompt_mask = left_padded(policy, asked)
    return Rows(
        prompt=prompt,
        prompt_mask=prompt_mask,
        token=token,
        mask=mask,
        present=mask,
        rollout_logprob=torch.zeros_like(token).float(),
    )


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
