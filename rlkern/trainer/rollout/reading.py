# SPDX-License-Identifier: Apache-2.0
"""Reading rows token by token with the cache that the model's own `generate` would use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin

from rlkern.trainer.models.policy import Passes
from rlkern.trainer.rollout.cache import roomy


class Reading:
    """A model that reads rows token by token, each pass over what is new.

    A model with no cache reads all of its rows again in each pass. `most` is the number of tokens
    that it reads of a row at most.
    """

    def __init__(self, model: Any, passes: Passes, most: int) -> None:
        self._model, self._passes, self._name = model, passes, passes.cache_name
        self._cache: Any = roomy(passes.new_cache(), most)
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

    @property
    def drops(self) -> bool:
        """Whether it can go on with some of its rows: not through a cache of the model's own."""
        return self._name is None or isinstance(self._cache, DynamicCache)

    def keep(self, rows: Tensor) -> None:
        """Goes on with some of the rows alone, by index."""
        if self._token is not None:
            self._token = self._token[rows]
        if self._cache is None:
            return
        if self._passes.attends:
            self._cache.batch_select_indices(rows)
        else:
            self._cache.reorder_cache(rows)

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
