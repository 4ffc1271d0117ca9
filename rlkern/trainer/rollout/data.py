# SPDX-License-Identifier: Apache-2.0
"""Prompts and completions as rows of tokens: what a sampler makes and the losses read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlkern.trainer.errors import UserError
from rlkern.trainer.models.policy import Policy


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and when a completion ends.

    temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave the whole vocabulary; `stop`
    are the ids that end a completion. Where an environment answers, a completion is one message,
    of max_turns at most.
    """

    max_new_tokens: int
    stop: Tensor
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_turns: int = 1

    @property
    def truncates(self) -> bool:
        """Returns whether top-k or top-p may leave a token out."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)

    @property
    def longest(self) -> int:
        """Returns the most tokens of its own that a completion may have, all turns together."""
        return self.max_turns * self.max_new_tokens

    def greedy(self) -> Sampling:
        """Returns the same, but the likeliest token each time."""
        return replace(self, temperature=0.0, top_k=0, top_p=1.0)


@dataclass
class Prompts:
    """Prompts as left-padded rows.

    Q prompts, P tokens: token (Q, P) int64; mask (Q, P) bool, True is a real token.
    """

    token: Tensor
    mask: Tensor

    def widened(self, width: int) -> Prompts:
        """Returns the same prompts with padding on the left up to `width` tokens."""
        more = (width - self.token.shape[1], 0)
        return Prompts(pad(self.token, more), pad(self.mask, more))

    def rows(self, index: Tensor) -> Prompts:
        """Returns the prompts of these indices."""
        return Prompts(self.token[index], self.mask[index])


@dataclass
class Rollout:
    """B = Q·G completions of Q prompts, the G completions of a prompt in consecutive rows.

    token            (B, T) int64
    mask             (B, T) bool, True is a token that the model chose and that counts; up to the
                     token that ended its message, included
    rollout_logprob  (B, T) float32 of the sampler, under keep
    present          (B, T) bool, True is a real token, the model's or its environment's; the first
                     so many of each row. None is mask: the model wrote everything
    keep             (B, T, K) int64 ids that top-k and top-p left to the sampler, ascending, -1 in
                     unused places; None is the whole vocabulary
    """

    prompts: Prompts
    token: Tensor
    mask: Tensor
    rollout_logprob: Tensor
    present: Tensor = None  # type: ignore[assignment]
    keep: Tensor | None = None

    def __post_init__(self) -> None:
        if self.present is None:
            self.present = self.mask

    @property
    def group_size(self) -> int:
        """Returns G, the completions of each prompt."""
        return self.token.shape[0] // self.prompts.token.shape[0]

    def piece(self, first: int, last: int) -> Rollout:
        """Returns the completions of prompts first..last-1."""
        prompts = Prompts(self.prompts.token[first:last], self.prompts.mask[first:last])
        return self._part(prompts, slice(first * self.group_size, last * self.group_size))

    def take(self, prompts: Tensor) -> Rollout:
        """Returns the completions of some prompts, by index, repeated where an index is."""
        return self._part(self.prompts.rows(prompts), self.rows_of(prompts))

    def rows_of(self, prompts: Tensor) -> Tensor:
        """Returns the indices of the completions of some prompts, group after group."""
        within = torch.arange(self.group_size, device=prompts.device)
        return (prompts[:, None] * self.group_size + within).flatten()

    def _part(self, prompts: Prompts, rows: slice | Tensor) -> Rollout:
        return Rollout(
            prompts,
            self.token[rows],
            self.mask[rows],
            self.rollout_logprob[rows],
            self.present[rows],
            None if self.keep is None else self.keep[rows],
        )

    def widened(self, prompt_width: int, width: int, kept: int = 0) -> Rollout:
        """Returns the same rollout, padded to these widths; to `kept` ids where that is above 0.

        Padding is never attended to and never counted, so its token is 0 whatever that stands for.
        """
        more, keep = (0, width - self.token.shape[1]), self.keep
        if keep is None and kept:
            keep = self.token.new_full((*self.token.shape, kept), -1)
        if keep is not None:
            keep = pad(keep, (0, max(0, kept - keep.shape[2]), *more), value=-1)
        return Rollout(
            self.prompts.widened(prompt_width),
            pad(self.token, more),
            pad(self.mask, more),
            pad(self.rollout_logprob, more),
            pad(self.present, more),
            keep,
        )

    def padded(self, multiple: int) -> Rollout:
        """Returns the same rollout with prompts and completions padded to a multiple of tokens."""
        widths = self.prompts.token.shape[1], self.token.shape[1]
        wider = [-(-width // multiple) * multiple for width in widths]
        return self if [*widths] == wider else self.widened(*wider)


def concat(rollouts: Sequence[Rollout]) -> Rollout:
    """Returns rollouts of the same group size as one, padded to the widest of them."""
    prompt_width = max(r.prompts.token.shape[1] for r in rollouts)
    width = max(r.token.shape[1] for r in rollouts)
    kept = max(0 if r.keep is None else r.keep.shape[2] for r in rollouts)
    same = [r.widened(prompt_width, width, kept) for r in rollouts]
    return Rollout(
        Prompts(
            torch.cat([r.prompts.token for r in same]), torch.cat([r.prompts.mask for r in same])
        ),
        torch.cat([r.token for r in same]),
        torch.cat([r.mask for r in same]),
        torch.cat([r.rollout_logprob for r in same]),
        torch.cat([r.present for r in same]),
        torch.cat([r.keep for r in same if r.keep is not None]) if kept else None,
    )


def encode(policy: Policy, texts: list[str], *, max_new_tokens: int) -> Prompts:
    """Returns prompts as rows; raises one sentence for a prompt that leaves no room for its
    completion.
    """
    # A tokenizer that begins every text with a special token begins prompts with it too.
    rows = [policy.tokenizer.encode(text) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise UserError(f"a prompt must have at least one token, got {text!r}")
        check_known(policy, row, text)
        if len(row) + max_new_tokens > policy.context:
            raise UserError(
                f"a prompt of {len(row)} tokens and {max_new_tokens} new ones do not fit the"
                f" model's context of {policy.context}: {text[:60]!r}"
            )
    return left_padded(policy, rows)


def check_known(policy: Policy, ids: list[int], text: str) -> None:
    """Returns nothing; raises one sentence for text that the model has no tokens for."""
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
    """Returns the ids that end a completion: eos, and every token whose text contains `stop`."""
    ids = {policy.tokenizer.eos_token_id}
    # A reward model, which generates nothing, has no such configuration.
    generation = getattr(policy.model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
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


def texts(policy: Policy, rollout: Rollout) -> list[str]:
    """Returns all that follows the prompts as text, special tokens left out."""
    rows = [
        row[real].tolist()
        for row, real in zip(rollout.token.cpu(), rollout.present.cpu(), strict=True)
    ]
    return policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
