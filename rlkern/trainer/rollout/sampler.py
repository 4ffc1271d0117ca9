# SPDX-License-Identifier: Apache-2.0
"""Sampling answers in batches with the cache that the model's own `generate` would use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationMixin

from rlkern.runs.errors import NotFinite
from rlkern.trainer.models.policy import Passes, Policy
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
    truncates, reading = sampling.truncates, Reading(policy.model, policy.passes)
    tokens, masks, logprobs, keeps = [], [], [], []
    with policy.precision():
        logits = reading.begin(prompts.token, prompts.mask, group_size)
        seen = prompts.mask.repeat_interleave(group_size, 0)
        alive = seen.new_ones(seen.shape[0])
        for step in range(sampling.max_new_tokens):
            logprob = next_logprob(logits, sampling)
            check_finite(policy, logprob, step)
            token = draw(logprob, None if uniform is None else uniform[:, step])
            tokens.append(torch.where(alive, token, PADDING))
            masks.append(alive)
            logprobs.append(torch.where(alive, logprob.gather(-1, token[:, None])[:, 0], 0.0))
            if truncates:
                keeps.append(_kept_ids(logprob > -torch.inf, alive))
            seen = torch.cat([seen, alive[:, None]], 1)
            alive = alive & ~torch.isin(token, sampling.stop)
            if step + 1 == sampling.max_new_tokens or not alive.any():
                break
            logits = reading.read(tokens[-1][:, None], seen)
    mask = torch.stack(masks, 1)
    return Rows(
        prompt=prompts.token,
        prompt_mask=prompts.mask,
        token=torch.stack(tokens, 1),
        mask=mask,
        present=mask,
        rollout_logprob=torch.stack(logprobs, 1),
        keep=_stacked(keeps) if keeps else None,
    )


class Reading:
    """A model that reads rows token by token, each pass over what is new.

    A model with no cache reads all of its rows again in each pass.
    """

    def __init__(self, model: Any, passes: Passes) -> None:
        self._model, self._passes, self._name = model, passes, passes.cache_name
        self._cache: Any = passes.new_cache()
        self._token: Tensor | None = None
        prepare = type(passes.head.causal).prepare_inputs_for_generation
        usual = prepare is GenerationMixin.prepare_inputs_for_generation
        self._plain = usual and self._name is not None

    def begin(self, token: Tensor, seen: Tensor, group_size: int) -> Tensor:
        """Returns the logits (B, V) after prompts (Q, P), each of them for a group of rows."""
        if self._cache is None:
            return self.read(*(x.repeat_interleave(group_size, 0) for x in (token, seen)))
        logits = self.read(token, seen)
        if self._passes.attends:
            self._cache.batch_repeat_interleave(group_size)
        else:
            # Not every layer knows how to repeat itself, but each can be put into another order.
            rows = torch.arange(token.shape[0], device=token.device)
            self._cache.reorder_cache(rows.repeat_interleave(group_size))
        if self._token is not None:
            self._token = self._token.repeat_interleave(group_size, 0)
        return logits.repeat_interleave(group_size, 0)

    def read(self, token: Tensor, seen: Tensor) -> Tensor:
        """Returns the logits (B, V) after more tokens (B, T), usually one; seen (B, S) says which
        of all so far are real."""
        name = self._name
        if self._plain:
            given = {**self._passes.inputs(token, seen), str(name): self._cache, "use_cache": True}
        else:
            given = self._prepared(token, seen)
        output = self._model(**{**given, **self._passes.last_only})
        if name is not None and not isinstance(self._cache, DynamicCache):
            self._cache = getattr(output, name)
        return output.logits[:, -1].float()

    def _prepared(self, token: Tensor, seen: Tensor) -> dict[str, Any]:
        """Returns what the model's own `generate` gives a pass over rows."""
        first = self._token is None
        so_far = [] if self._token is None else [self._token]
        self._token = torch.cat([*so_far, token], 1)
        given: dict[str, Any] = self._passes.inputs(self._token, seen)
        if self._name is None:
            return {**given, "use_cache": False}
        if self._cache is not None:
            given[self._name] = self._cache
        return self._passes.head.causal.prepare_inputs_for_generation(
            next_sequence_length=None if first else 1,
            is_first_iteration=first,
            use_cache=True,
            **given,
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
    if sampling.temperature > 0:
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


def draw(logprob: Tensor, uniform: Tensor | None) -> Tensor:
    """Returns a token (B,) for each row: the first whose cumulative probability is above the row's
    number, or the likeliest where there is no number.

    >>> draw(torch.tensor([[0.25, 0.0, 0.75]] * 2).log(), torch.tensor([0.2, 0.25]).double())
    tensor([0, 2])
    """
    if uniform is None:
        return logprob.argmax(-1)
    cumulative = logprob.double().exp().cumsum(-1)
    total = cumulative[:, -1:]
    # Of numbers in [0, 1) the largest is 1 - 2**-53, and its product still rounds below the total.
    place = uniform.to(total)[:, None] * total
    return torch.searchsorted(cumulative, place, right=True)[:, 0]


def _kept_ids(kept: Tensor, alive: Tensor) -> Tensor:
    """Returns the kept ids (B, K) of each row, ascending, with -1 behind them and in dead rows."""
    kept = kept & alive[:, None]
    width = int(kept.sum(-1).max())
    # False sorts behind True, and a stable sort leaves the ids in their order.
    ids = torch.argsort(kept.byte(), dim=-1, descending=True, stable=True)[:, :width]
    return torch.where(kept.gather(-1, ids), ids, -1)


def _stacked(keeps: list[Tensor]) -> Tensor:
    """Returns kept ids (B, T, K) of one entry for each step."""
    width = max(ids.shape[1] for ids in keeps)
    return torch.stack([pad(ids, (0, width - ids.shape[1]), value=-1) for ids in keeps], 1)
