# SPDX-License-Identifier: Apache-2.0
"""Between text and rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.trainer.data.chat import Answer, Prompt, shown, shown_answer
from rlkern.trainer.data.render import Tokens, prompt_ids, tokens, unknown
from rlkern.trainer.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rows import Rows


class Prompts(NamedTuple):
    """Q prompts as left-padded rows: token (Q, P) int64; mask (Q, P) bool, True is a real token."""

    token: Tensor
    mask: Tensor


def encode(
    policy: Policy, prompts: Sequence[Prompt], *, max_new_tokens: int, keep: int = 0
) -> Prompts:
    """Returns prompts as rows, of each the last `keep` tokens if that is not 0; Raises UserError if
    one leaves no room for its answer."""
    # A tokenizer that begins every text with a special token begins prompts with it too.
    rows = [prompt_ids(policy.tokenizer, prompt, keep) for prompt in prompts]
    context = policy.context
    for prompt, row in zip(prompts, rows, strict=True):
        text = shown(prompt)
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
    if unknown(policy.tokenizer, ids):
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
    ids = _ends(policy)
    if stop:
        texts = policy.tokenizer.batch_decode([[i] for i in range(len(policy.tokenizer))])
        ids.update(i for i, text in enumerate(texts) if stop in text)
    return torch.tensor(sorted(ids), device=policy.device)


def _ends(policy: Policy) -> set[int]:
    """Returns the ids that end an answer, whatever the task."""
    ids = {policy.tokenizer.eos_token_id}
    # A reward model, which generates nothing, has no such configuration.
    generation = getattr(policy.model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    if configured is not None:
        ids.update(configured if isinstance(configured, list) else [configured])
    return ids


def texts(policy: Policy, rows: Rows) -> list[str]:
    """Returns all that follows the prompts as text, without special tokens."""
    ids = [
        row[real].tolist() for row, real in zip(rows.token.cpu(), rows.present.cpu(), strict=True)
    ]
    return policy.tokenizer.batch_decode(ids, skip_special_tokens=True)


def given_rows(
    policy: Policy,
    prompts: Sequence[Prompt | None],
    answers: Sequence[Answer],
    *,
    stop: str,
    keep: int = 0,
) -> Rows:
    """Returns given answers as rows, len(answers) / len(prompts) consecutive ones to each prompt.

    An answer of text ends with the end-of-text token, unless it holds the text `stop` that ends one
    itself. Of a prompt the last `keep` tokens are kept if that is not 0. What others say between an
    answer's messages is present and does not count.
    """
    group, ends = len(answers) // len(prompts), _ends(policy)
    given = [
        tokens(policy.tokenizer, prompts[n // group], answer, ends=ends, stop=stop, keep=keep)
        for n, answer in enumerate(answers)
    ]
    asked = [each.prompt for each in given[::group]]
    for n, each in enumerate(given):
        # Both answers to a prompt go on from the same ids.
        each = each._replace(prompt=asked[n // group])
        _check(policy, each, shown(prompts[n // group] or ""), shown_answer(answers[n]))
    ids = [each.answer for each in given]
    width, fill = max(map(len, ids)), policy.tokenizer.pad_token_id
    token = torch.tensor([row + [fill] * (width - len(row)) for row in ids]).to(policy.device)
    mask, present = (
        torch.tensor([row + [False] * (width - len(row)) for row in each]).to(policy.device)
        for each in ([x.counts for x in given], [[True] * len(row) for row in ids])
    )
    prompt, prompt_mask = left_padded(policy, asked)
    return Rows(
        prompt=prompt,
        prompt_mask=prompt_mask,
        token=token,
        mask=mask,
        present=present,
        rollout_logprob=torch.zeros_like(token).float(),
    )


def _check(policy: Policy, given: Tokens, prompt: str, answer: str) -> None:
    asked, row = given.prompt, given.answer
    if not asked:
        raise UserError(f"a prompt must have at least one token, got {prompt!r}")
    check_known(policy, asked + row, prompt + answer)
    if len(asked) + len(row) > policy.context:
        raise UserError(
            f"a prompt of {len(asked)} tokens and an answer of {len(row)} do not fit the model's"
            f" context of {policy.context}: {prompt[:60]!r}"
        )
