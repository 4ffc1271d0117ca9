# SPDX-License-Identifier: Apache-2.0
"""Sampling completions in batches with the model's KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from rlkern.trainer.errors import UserError
from rlkern.trainer.models import Policy


@dataclass
class Prompts:
    """Prompts as left-padded rows.

    Q prompts, P tokens: token (Q, P) int64; mask (Q, P) bool, True is a real token.
    """

    token: Tensor
    mask: Tensor


@dataclass
class Rollout:
    """B = Q·G completions of Q prompts, the G completions of a prompt in consecutive rows.

    token, mask, rollout_logprob (B, T); mask is True up to the token that ended the row, included.
    """

    prompts: Prompts
    token: Tensor
    mask: Tensor
    rollout_logprob: Tensor

    @property
    def group_size(self) -> int:
        """Returns G, the completions of each prompt."""
        return self.token.shape[0] // self.prompts.token.shape[0]

    def piece(self, first: int, last: int) -> Rollout:
        """Returns the completions of prompts first..last-1."""
        rows = slice(first * self.group_size, last * self.group_size)
        prompts = Prompts(self.prompts.token[first:last], self.prompts.mask[first:last])
        return Rollout(prompts, self.token[rows], self.mask[rows], self.rollout_logprob[rows])


def encode(policy: Policy, texts: list[str], *, max_new_tokens: int) -> Prompts:
    """Returns prompts as rows; raises one sentence for a prompt that leaves no room for its
    completion.
    """
    # A tokenizer that begins every text with a special token begins prompts with it too.
    rows = [policy.tokenizer.encode(text) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise UserError(f"a prompt must have at least one token, got {text!r}")
        if len(row) + max_new_tokens > policy.context:
            raise UserError(
                f"a prompt of {len(row)} tokens and {max_new_tokens} new ones do not fit the"
                f" model's context of {policy.context}: {text[:60]!r}"
            )
    width = max(map(len, rows))
    pad = policy.tokenizer.pad_token_id
    token = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Prompts(token.to(policy.device), mask.to(policy.device))


def stop_tokens(policy: Policy, stop: str) -> Tensor:
    """Returns the ids that end a completion: eos, and every token whose text contains `stop`."""
    ids = {policy.tokenizer.eos_token_id}
    configured = policy.model.generation_config.eos_token_id
    ids.update(
        configured
        if isinstance(configured, list)
        else [configured]
        if configured is not None
        else []
    )
    if stop:
        texts = policy.tokenizer.batch_decode([[i] for i in range(len(policy.tokenizer))])
        ids.update(i for i, text in enumerate(texts) if stop in text)
    return torch.tensor(sorted(ids), device=policy.device)


def positions(mask: Tensor) -> Tensor:
    """Returns the position of each token of left-padded rows, padding not counted.

    >>> positions(torch.tensor([[False, True, True]])).tolist()
    [[0, 0, 1]]
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Prompts,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    stop: Tensor,
    generator: torch.Generator | None,
) -> Rollout:
    """Returns group_size completions of each prompt; temperature 0 takes the likeliest token."""
    cache = DynamicCache()
    logits = _forward(policy, prompts.token, prompts.mask, positions(prompts.mask), cache)
    cache.batch_repeat_interleave(group_size)
    logits = logits.repeat_interleave(group_size, 0)
    seen = prompts.mask.repeat_interleave(group_size, 0)
    alive = seen.new_ones(seen.shape[0])
    tokens, masks, logprobs = [], [], []
    for step in range(max_new_tokens):
        token, logprob = _draw(logits, temperature, generator)
        tokens.append(torch.where(alive, token, policy.tokenizer.pad_token_id))
        masks.append(alive)
        logprobs.append(torch.where(alive, logprob, 0.0))
        seen = torch.cat([seen, alive[:, None]], 1)
        alive = alive & ~torch.isin(token, stop)
        if step + 1 == max_new_tokens or not alive.any():
            break
        logits = _forward(policy, tokens[-1][:, None], seen, positions(seen)[:, -1:], cache)
    return Rollout(prompts, torch.stack(tokens, 1), torch.stack(masks, 1), torch.stack(logprobs, 1))


def _forward(
    policy: Policy, token: Tensor, seen: Tensor, position: Tensor, cache: DynamicCache
) -> Tensor:
    """Returns the logits (B, V) after the last token, and grow the cache."""
    with policy.precision():
        output = policy.model(
            input_ids=token,
            attention_mask=seen.long(),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return output.logits[:, -1].float()


def _draw(
    logits: Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Returns a token for each row and its log-probability under the sampler."""
    logprob = torch.log_softmax(logits / temperature if temperature > 0 else logits, -1)
    if temperature > 0:
        token = torch.multinomial(logprob.exp(), 1, generator=generator)
    else:
        token = logprob.argmax(-1, keepdim=True)
    return token[:, 0], logprob.gather(-1, token)[:, 0]


def texts(policy: Policy, rollout: Rollout) -> list[str]:
    """Returns the completions as text, special tokens left out."""
    rows = [
        row[keep].tolist()
        for row, keep in zip(rollout.token.cpu(), rollout.mask.cpu(), strict=True)
    ]
    return policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
