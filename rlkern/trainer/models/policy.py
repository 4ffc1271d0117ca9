# SPDX-License-Identifier: Apache-2.0
"""A causal language model with its tokenizer, and how it scores given answers.

The one place that shifts: hidden states whose position t scores answer token t.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import rlkern
from rlkern import CompanionLogprob, TokenLogprob
from rlkern.integrations.find_head import find_head
from rlkern.integrations.head import HeadOf, Hidden, text_config, without_adapter
from rlkern.runs.errors import UserError
from rlkern.trainer.models import lora
from rlkern.trainer.models.ways import (
    ATTENTION,
    WAYS,
    Way,
    context_of,
    kinds_of_layers,
    pads_left,
)
from rlkern.trainer.processes.world import World
from rlkern.trainer.rows import Rows, pieces
from rlkern.trainer.settings import Settings

# What a model calls the cache that its forward takes and returns; transformers 5.24 renamed all.
_CACHES = ("state", "cache_params", "cache", "past_key_values")


def positions(mask: Tensor) -> Tensor:
    """Returns the position of each token of left-padded rows, padding not counted.

    >>> positions(torch.tensor([[False, True, True]])).tolist()
    [[0, 0, 1]]
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@dataclass(frozen=True, eq=False)
class Passes:
    """How a model is run; its head says where it ends in hidden states."""

    head: HeadOf

    @functools.cached_property
    def _taken(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.head.causal.forward).parameters)

    @functools.cached_property
    def last_only(self) -> dict[str, int]:
        """The inputs with which the model makes the logits of the last token alone, and no loss for
        a router, whose mask is of all tokens so far."""
        asked = {"logits_to_keep": 1, "output_router_logits": False}
        return {name: x for name, x in asked.items() if name in self._taken}

    @property
    def way(self) -> Way:
        """How the model is run: as was measured or chosen, once for each model."""
        if self.head.causal not in WAYS:
            self.choose(Way(pads_left(self.head, self._left), True))
        return WAYS[self.head.causal]

    def choose(self, way: Way) -> None:
        """Runs the model in this way from now on."""
        WAYS[self.head.causal] = way

    @property
    def cache_name(self) -> str | None:
        """What the model calls its cache; None for one that reads whole rows each time."""
        return self._cache_name if self.way.cached else None

    @functools.cached_property
    def _cache_name(self) -> str | None:
        return next((name for name in _CACHES if name in self._taken), None)

    @functools.cached_property
    def _kinds(self) -> frozenset[type]:
        return kinds_of_layers(self.head.causal)

    @functools.cached_property
    def attends(self) -> bool:
        """Whether the cache holds keys and values of attention alone, which gradients pass."""
        return self._cache_name in _CACHES[2:] and bool(self._kinds) and self._kinds <= ATTENTION

    @property
    def shares(self) -> bool:
        """Whether the answers to a prompt may attend to one cache of it, with gradients."""
        # The way first: a model may have no cache that could be asked for its layers.
        return self.way == Way(True, True) and not self.routed and self.attends

    @property
    def routed(self) -> bool:
        """Whether the model has a loss of its own, for the router of its experts."""
        return getattr(text_config(self.head.causal), "output_router_logits", False)

    def new_cache(self) -> Any:
        """Returns an empty cache, None where the model makes its own."""
        if self.cache_name is None or not self._kinds:
            return None
        # Without a configuration it makes such layers as they come.
        plain = self._kinds == {DynamicLayer}
        return DynamicCache(config=None if plain else text_config(self.head.causal))

    def _left(self, token: Tensor, seen: Tensor) -> dict[str, Tensor]:
        found = {"input_ids": token, "attention_mask": seen.long()}
        if "position_ids" in self._taken:
            found["position_ids"] = positions(seen)[:, -token.shape[1] :]
        return found

    def inputs(self, token: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """Returns what a forward pass over the last tokens (B, T) of rows takes; seen (B, S) says
        which of all S so far are real."""
        if self.way.pads_left:
            return self._left(token, seen)
        return {"input_ids": token, "attention_mask": seen.long()}

    def whole_rows(self, token: Tensor, seen: Tensor) -> Hidden:
        """Returns the hidden states (B, S, H) of rows that begin with padding or end in it."""
        if self.way.pads_left:
            return self.head.hidden(**self.inputs(token, seen), use_cache=False)
        order = (~seen).long().argsort(dim=1, stable=True)
        given = self.inputs(token.gather(1, order), seen.gather(1, order))
        found = self.head.hidden(**given, use_cache=False)
        back = order.argsort(dim=1)[..., None].expand_as(found.states)
        return found._replace(states=found.states.gather(1, back))


@dataclass(frozen=True, eq=False)
class Policy:
    """A model, its tokenizer, where it runs, and whether matrix products run in bfloat16.

    bare leaves adapters out; recompute stores no activations of layers.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    mixed: bool = False
    bare: bool = False
    recompute: bool = False

    @functools.cached_property
    def head(self) -> HeadOf:
        """Returns where the model's logits come from; Raises UserError where that is not sure."""
        try:
            found = find_head(self.model)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        return found._replace(head=without_adapter(found.head)) if self.bare else found

    @functools.cached_property
    def passes(self) -> Passes:
        """Returns how the model is run over tokens."""
        return Passes(self.head)

    @functools.cached_property
    def context(self) -> int:
        """Returns the longest sequence in tokens that the model was made for, and up to which its
        rotary embeddings do not change with the length."""
        return context_of(text_config(self.model))

    def without_adapters(self) -> Policy:
        """Returns the model that the adapters are laid over: no copy, the same weights."""
        return dataclasses.replace(self, bare=True)

    @contextlib.contextmanager
    def precision(self, *, sampling: bool = False) -> Iterator[None]:
        """Holds the context in which the model's forward pass runs; sampling has any attention."""
        with contextlib.ExitStack() as stack:
            cast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)
            stack.enter_context(cast)
            if not sampling:
                stack.enter_context(self.attention())
            if self.bare:
                stack.enter_context(self.model.disable_adapter())
            if self.recompute and torch.is_grad_enabled():
                # transformers recomputes layers only in training mode; there is no dropout.
                self.model.train()
                stack.callback(self.model.eval)
            yield

    def attention(self) -> contextlib.AbstractContextManager:
        """Returns the context in which attention runs where rows are scored."""
        if self.device.type == "cpu" and self.low_precision:
            # Backward of the CPU's flash attention is twenty times slower in bfloat16 than in
            # float32; plain products are not, and a ratio compares scores of the same ones.
            return sdpa_kernel(SDPBackend.MATH)
        return contextlib.nullcontext()

    @property
    def low_precision(self) -> bool:
        """Returns True where matrix products run in bfloat16."""
        return self.mixed or self.model.dtype == torch.bfloat16

    def save(self, folder: Path, state: dict | None = None) -> None:
        """Write model and tokenizer in Hugging Face format, weights in safetensors: the adapters
        alone where there are any. `state` are the weights by name where they are spread."""
        if lora.is_adapted(self.model):
            lora.save_adapters(self.model, folder, state)
        else:
            self.model.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Returns the weights that are trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def hidden_states(
    policy: Policy, rows: Rows, *, share_prompts: bool, passes: Passes | None = None
) -> Tensor:
    """Returns hidden states (B, T, H) with hidden[b, t] scoring rows.token[b, t].

    They are those of `passes` if they are given, such as a critic's, and else the policy's own.
    """
    return run_rows(policy, rows, share_prompts=share_prompts, passes=passes).states


def run_rows(
    policy: Policy, rows: Rows, *, share_prompts: bool, passes: Passes | None = None
) -> Hidden:
    """Returns the hidden states that score the tokens of rows, and the loss of a mixture's router.

    share_prompts runs each prompt once and lets its answers attend to the cached keys and values,
    with gradients, as whole rows would. A model that keeps something else in its cache, or sums a
    loss for its router over whole rows, is run over whole rows.
    """
    passes = policy.passes if passes is None else passes
    shared = share_prompts and rows.prompt.shape[1] > 1 and passes.shares
    return (_shared if shared else _whole_rows)(policy, rows, passes)


def _whole_rows(policy: Policy, rows: Rows, passes: Passes) -> Hidden:
    prompt = rows.prompt.repeat_interleave(rows.group_size, 0)
    seen = torch.cat([rows.prompt_mask.repeat_interleave(rows.group_size, 0), rows.present], 1)
    with policy.precision():
        found = passes.whole_rows(torch.cat([prompt, rows.token], 1), seen)
    return found._replace(states=found.states[:, prompt.shape[1] - 1 : -1])


def _shared(policy: Policy, rows: Rows, passes: Passes) -> Hidden:
    prompt, known = rows.prompt, rows.prompt_mask
    seen = torch.cat([known.repeat_interleave(rows.group_size, 0), rows.present[:, :-1]], 1)
    last = prompt[:, -1:].repeat_interleave(rows.group_size, 0)
    token = torch.cat([last, rows.token[:, :-1]], 1)
    cache, run = passes.new_cache(), passes.head.hidden
    kept = {str(passes.cache_name): cache, "use_cache": True}
    with policy.precision():
        run(**passes.inputs(prompt[:, :-1], known[:, :-1]), **kept)
        cache.batch_repeat_interleave(rows.group_size)
        return run(**passes.inputs(token, seen), **kept)


def token_logprob(policy: Policy, rows: Rows, settings: Settings) -> Tensor:
    """Returns the log-probabilities (B, T) of the tokens of rows under a policy, at the temperature
    and over the ids that they were sampled by."""
    return token_scores(policy, rows, settings).logprob


def token_scores(policy: Policy, rows: Rows, settings: Settings) -> TokenLogprob | CompanionLogprob:
    """Returns the same with the entropy and what else comes with it."""
    hidden = hidden_states(policy, rows, share_prompts=settings.memory.share_prompts)
    head = policy.head.parameters()
    with policy.precision():
        return rlkern.linear_token_logprob(
            hidden,
            head.pop("weight"),
            rows.token,
            temperature=settings.rollout.temperature,
            mask=rows.mask,
            keep=rows.keep,
            **head,
        )


@torch.no_grad()
def without_gradient(
    function: Callable[[Rows], Tensor], rows: Rows, *, world: World, parts: int
) -> Tensor:
    """Returns function(rows), one row per answer, from all processes: each does its share of the
    prompts, in so many parts."""
    first, last = world.share(rows.prompts)
    found = [function(rows.piece(first + a, first + b)) for a, b in pieces(last - first, parts)]
    return world.gather_rows(torch.cat(found) if found else rows.rollout_logprob[:0])
