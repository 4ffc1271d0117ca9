# SPDX-License-Identifier: Apache-2.0
"""Sampling answers in batches with the cache that the model's own `generate` would use."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlkern.runs.errors import NotFinite
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.drawing import draw
from rlkern.trainer.rollout.packing import packed, pays
from rlkern.trainer.rollout.reading import Reading
from rlkern.trainer.rollout.text import PADDING, Prompts
from rlkern.trainer.rows import Rows, joined


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and when an answer ends.

    temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave the whole vocabulary; `stop`
    are the ids that end an answer. Where an environment answers, an answer is one message, and
    there are at most max_turns of them.
    """

    max_new_tokens: int
    stop: Tensor
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_turns: int = 1

    @cached_property
    def truncates(self) -> bool:
        """Whether top-k or top-p may leave a token out."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)

    @cached_property
    def longest(self) -> int:
        """The most tokens of its own that an answer may have, all turns together."""
        return self.max_turns * self.max_new_tokens

    def greedy(self) -> Sampling:
        """Returns the same, but the likeliest token each time."""
        return replace(self, temperature=0.0, top_k=0, top_p=1.0)


def random_numbers(generator: torch.Generator, rows: int, sampling: Sampling) -> Tensor:
    """Returns one number in [0, 1) for each token of `rows` answers, (rows, T) float64.

    T counts the tokens of all turns. Drawn for a whole batch at once, so that a part of it samples
    the same tokens.
    """
    shape = (rows, sampling.longest)
    return torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Prompts,
    sampling: Sampling,
    *,
    group_size: int,
    uniform: Tensor | None,
) -> Rows:
    """Returns group_size answers to each prompt.

    uniform  (B, max_new_tokens) float64 in [0, 1), which token t of row b is drawn by; None where
             nothing is drawn, at temperature 0
    """
    lengths = prompts.mask.sum(-1)
    if policy.passes.way.pads_left or (lengths == lengths[0]).all():
        return _sample(policy, prompts, sampling, group_size, uniform)
    return _sample_by_length(policy, prompts, sampling, group_size, uniform)


def _sample_by_length(
    policy: Policy,
    prompts: Prompts,
    sampling: Sampling,
    group_size: int,
    uniform: Tensor | None,
) -> Rows:
    """Returns answers to prompts of which those of equal length are sampled together, unpadded."""
    found, order, lengths = [], [], prompts.mask.sum(-1)
    for length in lengths.unique().tolist():
        chosen = (lengths == length).nonzero()[:, 0]
        some = Prompts(*(x[chosen, -length:] for x in prompts))
        numbers = None
        if uniform is not None:
            numbers = uniform.view(len(lengths), group_size, -1)[chosen.to(uniform.device)]
            numbers = numbers.flatten(0, 1)
        found.append(_sample(policy, some, sampling, group_size, numbers))
        order.append(chosen)
    return joined(found).take(torch.cat(order).argsort())


def _sample(
    policy: Policy,
    prompts: Prompts,
    sampling: Sampling,
    group_size: int,
    uniform: Tensor | None,
) -> Rows:
    most = prompts.token.shape[1] + sampling.max_new_tokens - 1
    reading, drawn = Reading(policy.model, policy.passes, most), list[_Drawn]()
    with ExitStack() as stack:
        stack.enter_context(policy.precision(sampling=True))
        if pays(policy, sampling.max_new_tokens):
            stack.enter_context(packed(policy))
        logits = reading.begin(prompts.token, prompts.mask, group_size)
        seen = prompts.mask.repeat_interleave(group_size, 0)
        count = seen.shape[0]
        rows, alive = torch.arange(count, device=seen.device), seen.new_ones(count)
        for step in range(sampling.max_new_tokens):
            logprob = next_logprob(logits, sampling)
            check_finite(policy, logprob, step)
            numbers = None if uniform is None else uniform[rows.to(uniform.device), step]
            token = draw(logprob, numbers)
            drawn.append(_Drawn.of(rows, alive, token, logprob, sampling.truncates))
            seen = torch.cat([seen, alive[:, None]], 1)
            alive = alive & ~torch.isin(token, sampling.stop)
            going = int(alive.sum())
            if step + 1 == sampling.max_new_tokens or not going:
                break
            token = drawn[-1].token
            if reading.drops and going <= _FULL * len(rows):
                # Copying what is left of the cache costs less than reading rows that have ended.
                left = alive.nonzero()[:, 0]
                reading.keep(left)
                rows, alive, seen, token = (x[left] for x in (rows, alive, seen, token))
            logits = reading.read(token[:, None], seen)
    return _rows_of(prompts, drawn, count)


# Below this share of rows that still go on the others are no longer read.
_FULL = 0.75


class _Drawn(NamedTuple):
    """The tokens of one step: of which rows (N,), which of them still went on, what was drawn, its
    log-probability, and the ids it was drawn from, if these were fewer than all."""

    rows: Tensor
    alive: Tensor
    token: Tensor
    logprob: Tensor
    kept: Tensor | None

    @classmethod
    def of(
        cls, rows: Tensor, alive: Tensor, token: Tensor, logprob: Tensor, truncates: bool
    ) -> _Drawn:
        """Returns the tokens that were drawn of distributions logprob (N, V)."""
        kept = _kept_ids(logprob > -torch.inf, alive) if truncates else None
        own = torch.where(alive, logprob.gather(-1, token[:, None])[:, 0], 0.0)
        return cls(rows, alive, torch.where(alive, token, PADDING), own, kept)


def _rows_of(prompts: Prompts, drawn: list[_Drawn], count: int) -> Rows:
    """Returns `count` answers as rows of as many tokens as there were steps."""

    def whole(name: str, fill: float) -> Tensor:
        first, width = getattr(drawn[0], name), len(drawn)
        found = first.new_full((count, width, *first.shape[1:]), fill)
        for step, each in enumerate(drawn):
            found[each.rows, step] = getattr(each, name)
        return found

    mask = whole("alive", False)
    kept = [each.kept for each in drawn if each.kept is not None]
    if kept:
        width = max(ids.shape[1] for ids in kept)
        wide = [pad(ids, (0, width - ids.shape[1]), value=-1) for ids in kept]
        drawn = [each._replace(kept=ids) for each, ids in zip(drawn, wide, strict=True)]
    return Rows(
        prompt=prompts.token,
        prompt_mask=prompts.mask,
        token=whole("token", PADDING),
        mask=mask,
        present=mask,
        rollout_logprob=whole("logprob", 0.0),
        keep=whole("kept", -1) if kept else None,
    )


@dataclass
class ModelEngine:
    """The engine that is the policy itself."""

    policy: Policy

    def refresh(self) -> None:
        """Does nothing: the weights are the policy's own."""

    def sample(
        self, prompts: Prompts, sampling: Sampling, *, group_size: int, uniform: Tensor | None
    ) -> Rows:
        """Returns group_size answers to each prompt."""
        return sample(self.policy, prompts, sampling, group_size=group_size, uniform=uniform)


def next_logprob(logits: Tensor, sampling: Sampling) -> Tensor:
    """Returns the log-probability (B, V) of each next token, -inf where it cannot be drawn.

    Temperature, then the top_k likeliest, then of these the fewest likeliest whose probability
    reaches top_p, then renormalised: the order of vLLM and transformers. Of equally likely tokens
    those with lower ids come first, so that top_k keeps exactly k.

    >>> from math import log
    >>> logits = torch.tensor([[log(0.2), log(0.4), log(0.3), log(0.1)]])
    >>> rule = Sampling(4, torch.tensor([0]), top_k=3, top_p=0.7)
    >>> next_logprob(logits, rule).exp()   # of 4/9, 3/9, 2/9 the first two reach 0.7
    tensor([[0.0000, 0.5714, 0.4286, 0.0000]])
    """
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    if sampling.truncates:
        logits = torch.where(_kept(logits, sampling.top_k, sampling.top_p), logits, -torch.inf)
    return torch.log_softmax(logits, -1)


def check_finite(policy: Policy, logprob: Tensor, step: int) -> None:
    """Raises NotFinite, which names the weight if it is one, for logits of the step'th token of
    answers that are NaN or infinite."""
    # One such logit makes its whole row NaN, so a column tells.
    if not logprob[:, 0].isnan().any():
        return
    named = policy.model.named_parameters()
    broken = next((name for name, p in named if not p.isfinite().all()), None)
    why = f"the weight {broken} holds values that are not finite"
    if broken is None:
        why = "all weights are finite, so its forward pass overflows: try --dtype float32"
    raise NotFinite(f"the model's logits of token {step + 1} of an answer are not finite: {why}")


def _kept(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Returns (B, V), True for the tokens that top-k and then top-p leave."""
    ordered, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    if top_k:
        ordered[:, top_k:] = -torch.inf
    probability = torch.softmax(ordered.double(), -1)
    before = probability.cumsum(-1) - probability
    chosen = (before < top_p) & (ordered > -torch.inf)
    return torch.zeros_like(chosen).scatter(-1, ids, chosen)


def _kept_ids(kept: Tensor, alive: Tensor) -> Tensor:
    """Returns the kept ids (B, K) of each row, ascending, with -1 behind them and in dead rows."""
    kept = kept & alive[:, None]
    width = int(kept.sum(-1).max())
    # False sorts behind True, and a stable sort leaves the ids in their order.
    ids = torch.argsort(kept.byte(), dim=-1, descending=True, stable=True)[:, :width]
    return torch.where(kept.gather(-1, ids), ids, -1)
