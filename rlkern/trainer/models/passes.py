# SPDX-License-Identifier: Apache-2.0
"""How a model is run over tokens: the inputs and the cache that its own `generate` would use, and
whether its rows may be padded on the left.

Attention with a mask sees no padding, at positions that are counted without it. Positions that a
model counts itself and states that grow with each token do see it; such a model scores rows that
are padded on the right, where nothing looks at the padding, and samples prompts of equal length
together.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlkern.integrations.head import HeadOf, Hidden, text_config

# What a model calls the cache that its forward takes and returns, in the order they are looked for.
_CACHES = ("past_key_values", "cache_params", "state")


class Way(NamedTuple):
    """How rows are laid out and read: with padding on the left, or in groups of equal length;
    through a cache, or all over again for each token."""

    pads_left: bool
    cached: bool


_WAYS: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


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

    @cached_property
    def _taken(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.head.causal.forward).parameters)

    @cached_property
    def last_only(self) -> dict[str, int]:
        """The inputs with which the model makes the logits of the last token alone, and no loss for
        a router, whose mask is of all tokens so far."""
        asked = {"logits_to_keep": 1, "output_router_logits": False}
        return {name: x for name, x in asked.items() if name in self._taken}

    @property
    def way(self) -> Way:
        """How the model is run: as was measured or chosen, once for each model."""
        if self.head.causal not in _WAYS:
            self.choose(Way(self._measured(), True))
        return _WAYS[self.head.causal]

    def choose(self, way: Way) -> None:
        """Runs the model in this way from now on."""
        _WAYS[self.head.causal] = way

    def ways(self) -> list[Way]:
        """Returns the ways to run the model, the fastest first."""
        found = [self.way, Way(False, True), Way(False, False)]
        return list(dict.fromkeys(found))

    @property
    def cache_name(self) -> str | None:
        """What the model calls its cache; None for one that reads whole rows each time."""
        return self._cache_name if self.way.cached else None

    @cached_property
    def _cache_name(self) -> str | None:
        names = [name for name in _CACHES if name in self._taken]
        return names[-1] if names else None

    @cached_property
    def _layers(self) -> list[Any]:
        return list(DynamicCache(config=text_config(self.head.causal)).layers)

    @cached_property
    def attends(self) -> bool:
        """Whether the cache holds the keys and values of plain attention and nothing else, through
        which gradients flow."""
        kinds = (DynamicLayer, DynamicSlidingWindowLayer)
        own = self.head.causal._supports_default_dynamic_cache()
        usual = own and self._cache_name == _CACHES[0]
        return usual and all(type(x) in kinds for x in self._layers)

    @cached_property
    def _grows(self) -> bool:
        return all(type(x) is DynamicLayer for x in self._layers)

    @property
    def shares(self) -> bool:
        """Whether the answers to a prompt may attend to one cache of it, with gradients."""
        routed = getattr(text_config(self.head.causal), "output_router_logits", False)
        return self.way == Way(True, True) and not routed and self.attends

    def new_cache(self) -> Any:
        """Returns an empty cache, None where the model makes its own."""
        if self.cache_name is None or not self.head.causal._supports_default_dynamic_cache():
            return None
        # Without a configuration it makes its layers as they come, which is what these are.
        return DynamicCache() if self._grows else DynamicCache(config=text_config(self.head.causal))

    def _measured(self) -> bool:
        """Returns whether a row has the same hidden states with padding on its left, at positions
        counted without it, as the model gives it alone."""
        weight = self.head.causal.get_input_embeddings().weight
        row = torch.arange(3, 9, device=weight.device)[None] % weight.shape[0]
        padded, seen = torch.cat([row[:, :3], row], 1), torch.ones(1, 9, device=row.device) > 0
        seen[:, :3] = False
        try:
            with torch.no_grad():
                alone = self.head.hidden(input_ids=row, use_cache=False).states
                found = self.head.hidden(**self._left(padded, seen), use_cache=False).states[:, 3:]
        except (RuntimeError, ValueError, IndexError):
            return False  # such as a mask that its layers do not take
        bound = 1e-3 if alone.dtype in (torch.float32, torch.float64) else 0.05
        return bool((found - alone).norm() <= bound * alone.norm())

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

    @property
    def plain(self) -> bool:
        """Whether each pass takes the new tokens, the mask and the cache, as most models do."""
        own = type(self.head.causal).prepare_inputs_for_generation
        usual = own is GenerationMixin.prepare_inputs_for_generation
        return usual and self.cache_name is not None

    def prepared(self, token: Tensor, seen: Tensor, cache: Any, *, first: bool) -> dict[str, Any]:
        """Returns what the model's own `generate` gives a pass over rows of which all tokens so far
        (B, S) are given."""
        name, given = self.cache_name, self.inputs(token, seen)
        if name is None:
            return given
        given["use_cache"] = True
        if cache is not None:
            given[name] = cache
        return self.head.causal.prepare_inputs_for_generation(
            next_sequence_length=None if first else 1, is_first_iteration=first, **given
        )

    def whole_rows(self, token: Tensor, seen: Tensor) -> Hidden:
        """Returns the hidden states (B, S, H) of rows that begin with padding or end in it."""
        if self.way.pads_left:
            return self.head.hidden(**self.inputs(token, seen), use_cache=False)
        order = (~seen).long().argsort(dim=1, stable=True)
        given = self.inputs(token.gather(1, order), seen.gather(1, order))
        found = self.head.hidden(**given, use_cache=False)
        back = order.argsort(dim=1)[..., None].expand_as(found.states)
        return found._replace(states=found.states.gather(1, back))


class Reading:
    """A model that reads rows token by token, each pass over what is new.

    A model with no cache reads all of its rows again in each pass.
    """

    def __init__(self, model: Any, passes: Passes) -> None:
        self._model, self._passes = model, passes
        self._cache: Any = passes.new_cache()
        self._token: Tensor | None = None

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
        passes, name = self._passes, self._passes.cache_name
        if passes.plain:
            given = {**passes.inputs(token, seen), str(name): self._cache, "use_cache": True}
        else:
            first = self._token is None
            self._token = token if first else torch.cat([self._token, token], 1)
            given = passes.prepared(self._token, seen, self._cache, first=first)
        output = self._model(**{**given, **passes.last_only})
        if name is not None and not isinstance(self._cache, DynamicCache):
            self._cache = getattr(output, name)
        return output.logits[:, -1].float()
