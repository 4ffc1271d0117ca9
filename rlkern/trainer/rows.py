# SPDX-License-Identifier: Apache-2.0
"""The one record of a batch: prompts, answers, and what becomes known of them on the way to a loss.

A sampler fills in the tokens, rewards and scores follow, then advantages and weights. Every
function returns a new record; none changes the one it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

import rlkern
from rlkern.trainer.data.chat import Message
from rlkern.trainer.tasks.task import Item


def _rows(per: str, *, fill: float | None = None, **default: Any) -> Any:
    """Returns a field of one row per prompt or per answer; fill pads its second axis, of tokens."""
    return dataclasses.field(metadata={"per": per, "fill": fill}, **default)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """B = Q·G answers to Q prompts, the G answers of a prompt in consecutive rows.

    prompt           (Q, P) int64, padded on the left
    prompt_mask      (Q, P) bool, True is a real token
    token            (B, T) int64
    mask             (B, T) bool, True is a token that the model chose and that counts, up to and
                     including the token that ended its message
    present          (B, T) bool, True is a real token, the model's or its environment's; these come
                     first in each row
    rollout_logprob  (B, T) float32 of the sampler, under keep
    keep             (B, T, K) int64 ids that top-k and top-p left to the sampler, ascending, -1 in
                     unused places; None is the whole vocabulary

    The rest is None until somebody needs it:

    item             B, the item that each answer is to
    text             B, all that follows the prompts as text
    transcript       B, the messages of each conversation behind its prompt, by all speakers
    verdict          B, what the environment of each conversation says of it, None where it cannot
    rewards          (B, F) float32 of each reward function, NaN where it cannot score an answer
    reward           (B,) float32, the weighted sum; NaN where no function can score
    shaped_reward    (B,) float32, the reward with punishments of length
    old_logprob      (B, T) of the policy that sampled, by the trainer
    ref_logprob      (B, T) of the starting model
    teacher_logprob  (B, T) of the teacher
    value            (B, T) the critic's estimate before each token
    baseline         (B,) the reward that an answer is compared with: of a greedy answer, or V*
    anchor_logprob   (B, T) what the loss takes the ratio to; None is the policy itself, ratio 1
    advantage        (B,) or (B, T)
    value_target     (B, T) what the critic should have said, NaN where there is nothing to learn
    correction       (B, T) factor of the policy loss
    penalty          (B, T) factor of |log r| in the policy loss
    weight           (B, T) of each token in the policy's loss
    entropy_weight   (B, T) of its entropy; None is weight
    nll_weight       (B, T) of its negative log-likelihood beside the loss
    value_weight     (B, T) of each token in the critic's loss
    prompt_weight    (Q,) of each pair, or of each answer that is judged by itself
    ref_total        (B,) log-probability of whole answers under the starting model
    desirable        (B,) bool
    divergence       scalar, of mismatched answers, for KTO
    """

    prompt: Tensor = _rows("prompt")
    prompt_mask: Tensor = _rows("prompt")
    token: Tensor = _rows("answer", fill=0)
    mask: Tensor = _rows("answer", fill=0)
    present: Tensor = _rows("answer", fill=0)
    rollout_logprob: Tensor = _rows("answer", fill=0)
    keep: Tensor | None = _rows("answer", fill=-1, default=None)
    item: list[Item] | None = _rows("answer", default=None)
    text: list[str] | None = _rows("answer", default=None)
    transcript: list[list[Message]] | None = _rows("answer", default=None)
    verdict: list[float | None] | None = _rows("answer", default=None)
    rewards: Tensor | None = _rows("answer", default=None)
    reward: Tensor | None = _rows("answer", default=None)
    shaped_reward: Tensor | None = _rows("answer", default=None)
    old_logprob: Tensor | None = _rows("answer", fill=0, default=None)
    ref_logprob: Tensor | None = _rows("answer", fill=0, default=None)
    teacher_logprob: Tensor | None = _rows("answer", fill=0, default=None)
    value: Tensor | None = _rows("answer", fill=0, default=None)
    baseline: Tensor | None = _rows("answer", default=None)
    anchor_logprob: Tensor | None = _rows("answer", fill=0, default=None)
    advantage: Tensor | None = _rows("answer", fill=0, default=None)
    value_target: Tensor | None = _rows("answer", fill=torch.nan, default=None)
    correction: Tensor | None = _rows("answer", fill=0, default=None)
    penalty: Tensor | None = _rows("answer", fill=0, default=None)
    weight: Tensor | None = _rows("answer", fill=0, default=None)
    entropy_weight: Tensor | None = _rows("answer", fill=0, default=None)
    nll_weight: Tensor | None = _rows("answer", fill=0, default=None)
    value_weight: Tensor | None = _rows("answer", fill=0, default=None)
    prompt_weight: Tensor | None = _rows("prompt", default=None)
    ref_total: Tensor | None = _rows("answer", default=None)
    desirable: Tensor | None = _rows("answer", default=None)
    divergence: Tensor | None = _rows("batch", default=None)

    @cached_property
    def prompts(self) -> int:
        """The number of prompts, Q."""
        return self.prompt.shape[0]

    @cached_property
    def group_size(self) -> int:
        """The answers to each prompt, G."""
        return self.token.shape[0] // self.prompts if self.prompts else 1

    @property
    def group(self) -> Tensor:
        """The prompt (B,) int64 that each answer is to."""
        return torch.arange(self.token.shape[0], device=self.token.device) // self.group_size

    @property
    def tokens(self) -> int:
        """The number of tokens that a model reads, the prompts once per answer."""
        return int(self.prompt_mask.sum() * self.group_size + self.present.sum())

    def piece(self, first: int, last: int) -> Rows:
        """Returns the answers to prompts first..last-1."""
        answers = slice(first * self.group_size, last * self.group_size)
        return self._chosen(slice(first, last), answers)

    def take(self, prompts: Tensor) -> Rows:
        """Returns the answers to some prompts, by index, repeated where an index is."""
        within = torch.arange(self.group_size, device=prompts.device)
        answers = (prompts[:, None] * self.group_size + within).flatten()
        return self._chosen(prompts, answers)

    def _chosen(self, prompts: slice | Tensor, answers: slice | Tensor) -> Rows:
        index = {"prompt": prompts, "answer": answers}
        return self._map(lambda field, x: _at(x, index.get(field.metadata["per"])))

    def _map(self, function: Callable[[dataclasses.Field, Any], Any]) -> Rows:
        """Returns the record with function(field, value) in place of every value that is known."""
        known = [(f, getattr(self, f.name)) for f in dataclasses.fields(self)]
        return Rows(**{f.name: function(f, x) for f, x in known if x is not None})

    def widened(self, prompt_width: int, width: int, kept: int = 0) -> Rows:
        """Returns the same rows, padded to these widths; to `kept` ids where that is above 0.

        Padding is never attended to and never counted, so its token is 0 whatever that stands for.
        """
        prompt = (prompt_width - self.prompt.shape[1], 0)
        more = width - self.token.shape[1]
        keep = self.keep
        if keep is None and kept:
            keep = self.token.new_full((*self.token.shape, 0), -1)
        if keep is not None:
            keep = pad(keep, (0, max(0, kept - keep.shape[2])), value=-1)

        def wider(field: dataclasses.Field, x: Any) -> Any:
            fill = field.metadata["fill"]
            if fill is None or x.ndim < 2:
                return x
            return pad(x, (*[0, 0] * (x.ndim - 2), 0, more), value=fill)

        whole = dataclasses.replace(self, keep=keep)._map(wider)
        return dataclasses.replace(
            whole, prompt=pad(self.prompt, prompt), prompt_mask=pad(self.prompt_mask, prompt)
        )

    def padded(self, multiple: int) -> Rows:
        """Returns the same rows with prompts and answers padded to a multiple of tokens."""
        widths = (self.prompt.shape[1], self.token.shape[1])
        wider = tuple(-(-width // multiple) * multiple for width in widths)
        return self if widths == wider else self.widened(*wider)


def _at(x: Any, index: slice | Tensor | None) -> Any:
    if index is None:
        return x
    if isinstance(x, list) and not isinstance(index, slice):
        return [x[i] for i in index.tolist()]
    return x[index]


def joined(parts: Sequence[Rows]) -> Rows:
    """Returns rows of the same group size as one record, padded to the widest of them."""
    kept = max(0 if part.keep is None else part.keep.shape[2] for part in parts)
    prompt_width = max(part.prompt.shape[1] for part in parts)
    width = max(part.token.shape[1] for part in parts)
    same = [part.widened(prompt_width, width, kept) for part in parts]

    def whole(field: dataclasses.Field, first: Any) -> Any:
        every = [getattr(part, field.name) for part in same]
        if isinstance(first, list):
            return [x for each in every for x in each]
        return torch.cat(every) if field.metadata["per"] != "batch" else first

    return same[0]._map(whole)


def pieces(count: int, parts: int) -> list[tuple[int, int]]:
    """Returns the ranges of `count` things in at most so many parts, as even as they can be.

    >>> pieces(5, 2)
    [(0, 2), (2, 5)]
    """
    edges = [count * i // parts for i in range(parts + 1)]
    return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if a < b]


def finished(rows: Rows, stop: Tensor) -> Tensor:
    """Returns which answers (B,) ended by themselves: with one of the stop tokens."""
    return (torch.isin(rows.token, stop) & rlkern.last_counted(rows.mask)).any(-1)
