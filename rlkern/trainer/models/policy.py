# SPDX-License-Identifier: Apache-2.0
"""A causal language model with its tokenizer, and how it scores given answers.

The one place that shifts: hidden states whose position t scores answer token t.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import rlkern
from rlkern import TokenLogprob
from rlkern.integrations.find_head import find_head
from rlkern.integrations.head import HeadOf, Hidden, text_config
from rlkern.integrations.head_weights import without_adapter
from rlkern.trainer.models import lora
from rlkern.trainer.models.passes import Passes
from rlkern.trainer.processes.world import World
from rlkern.trainer.rows import Rows, pieces
from rlkern.trainer.settings import Settings


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
        """Returns where the model's logits come from."""
        found = find_head(self.model)
        return found._replace(head=without_adapter(found.head)) if self.bare else found

    @functools.cached_property
    def passes(self) -> Passes:
        """Returns how the model is run over tokens."""
        return Passes(self.head)

    @functools.cached_property
    def context(self) -> int:
        """Returns the longest sequence in tokens that the model was made for, and up to which its
        rotary embeddings do not change with the length."""
        config = text_config(self.model)
        known = [getattr(config, "max_position_embeddings", 0) or 2**31]
        known += [rope["original_max_position_embeddings"] for rope in _changing_ropes(config)]
        return int(min(known))

    def without_adapters(self) -> Policy:
        """Returns the model that the adapters are laid over: no copy, the same weights."""
        return dataclasses.replace(self, bare=True)

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Holds the context in which the model's forward pass runs."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)
            )
            stack.enter_context(self.attention())
            if self.bare:
                stack.enter_context(self.model.disable_adapter())
            if self.recompute and torch.is_grad_enabled():
                # transformers recomputes layers only in training mode; there is no dropout.
                self.model.train()
                stack.callback(self.model.eval)
            yield

    def attention(self) -> contextlib.AbstractContextManager:
        """Returns the context in which its attention runs."""
        if self.device.type == "cpu" and self.low_precision:
            # Backward of the CPU's flash attention is twenty times slower in bfloat16 than in
            # float32; the plain products of short rows are not.
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


def _changing_ropes(config: Any) -> list[dict]:
    """Returns the settings of rotary embeddings whose frequencies are others beyond a length, at
    which a cache holds keys of both."""
    given = getattr(config, "rope_parameters", None) or {}
    ropes = [given, *(x for x in given.values() if isinstance(x, dict))]
    name = "original_max_position_embeddings"
    return [x for x in ropes if x.get("rope_type") in ("longrope", "dynamic") and x.get(name)]


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

    share_prompts runs each prompt once and lets its answers attend to the cached keys and
    values; gradients flow through the cache, so the result is that of whole rows. Where a model
    keeps something else in its cache, or has a loss for its router, whose sum is over whole rows,
    whole rows are run all the same.
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
    with policy.precision():
        run(**passes.inputs(prompt[:, :-1], known[:, :-1]), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(rows.group_size)
        return run(**passes.inputs(token, seen), past_key_values=cache, use_cache=True)


def token_logprob(policy: Policy, rows: Rows, settings: Settings) -> Tensor:
    """Returns the log-probabilities (B, T) of the tokens of rows under a policy, at the temperature
    and over the ids that they were sampled by."""
    return token_scores(policy, rows, settings).logprob


def token_scores(policy: Policy, rows: Rows, settings: Settings) -> TokenLogprob:
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
