# SPDX-License-Identifier: Apache-2.0
"""The ways in which a model can be run over rows, and which one a model is run in.

Attention with a mask sees no padding, at positions that are counted without it. Positions that a
model counts itself and states that grow with each token do see it; such a model scores rows that
are padded on the right, where nothing looks at the padding, and samples prompts of equal length
together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlkern.integrations.head import HeadOf, text_config


class Way(NamedTuple):
    """How rows are laid out and read: with padding on the left, or in groups of equal length;
    through a cache, or all over again for each token."""

    pads_left: bool
    cached: bool


# The layers of a cache that hold keys and values.
ATTENTION = frozenset({DynamicLayer, DynamicSlidingWindowLayer})
WAYS: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


def pads_left(head: HeadOf, inputs: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> bool:
    """Returns whether a row has the same hidden states with padding on its left, at the positions
    that `inputs` counts without it, as the model gives it alone."""
    weight = head.causal.get_input_embeddings().weight
    row = torch.arange(3, 9, device=weight.device)[None] % weight.shape[0]
    padded, seen = torch.cat([row[:, :3], row], 1), torch.ones(1, 9, device=row.device) > 0
    seen[:, :3] = False
    try:
        with torch.no_grad():
            alone = head.hidden(input_ids=row, use_cache=False).states
            found = head.hidden(**inputs(padded, seen), use_cache=False).states[:, 3:]
    except (RuntimeError, ValueError, IndexError):
        return False  # such as a mask that its layers do not take
    bound = 1e-3 if alone.dtype in (torch.float32, torch.float64) else 0.05
    return bool((found - alone).norm() <= bound * alone.norm())


def kinds_of_layers(causal: Any) -> frozenset[type]:
    """Returns the kinds of layers of the cache that `generate` makes for a model, none where the
    model makes its own."""
    if not causal._supports_default_dynamic_cache():
        return frozenset()
    return frozenset(map(type, DynamicCache(config=text_config(causal)).layers))


def context_of(config: Any) -> int:
    """Returns the longest sequence in tokens that a model was made for, and up to which its rotary
    embeddings do not change with the length: beyond, a cache would hold keys of both kinds."""
    given = getattr(config, "rope_parameters", None) or {}
    ropes = [given, *(x for x in given.values() if isinstance(x, dict))]
    changing = [x for x in ropes if x.get("rope_type") in ("longrope", "dynamic")]
    known = [x.get("original_max_position_embeddings") for x in changing]
    known.append(getattr(config, "max_position_embeddings", None))
    return min((int(n) for n in known if n and n > 0), default=2**31)
