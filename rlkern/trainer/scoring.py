# SPDX-License-Identifier: Apache-2.0
"""The one place that shifts: hidden states whose position t scores answer token t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import rlkern
from rlkern import TokenLogprob
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.sampler import positions
from rlkern.trainer.rows import Rows, pieces
from rlkern.trainer.settings import Settings


def hidden_states(
    policy: Policy, rows: Rows, *, share_prompts: bool, decoder: Any = None
) -> Tensor:
    """Returns hidden states (B, T, H) with hidden[b, t] scoring rows.token[b, t].

    share_prompts runs each prompt once and lets its answers attend to the cached keys and
    values; gradients flow through the cache, so the result is that of whole rows. They are those of
    `decoder` if one is given, such as a critic's, and else the policy's own.
    """
    run = _shared if share_prompts and rows.prompt.shape[1] > 1 else _whole_rows
    return run(policy, rows, policy.head.decoder if decoder is None else decoder)


def _whole_rows(policy: Policy, rows: Rows, decoder: Any) -> Tensor:
    prompt = rows.prompt.repeat_interleave(rows.group_size, 0)
    seen = torch.cat([rows.prompt_mask.repeat_interleave(rows.group_size, 0), rows.present], 1)
    with policy.precision():
        output = decoder(
            input_ids=torch.cat([prompt, rows.token], 1),
            attention_mask=seen.long(),
            position_ids=positions(seen),
            use_cache=False,
        )
    return output.last_hidden_state[:, prompt.shape[1] - 1 : -1]


def _shared(policy: Policy, rows: Rows, decoder: Any) -> Tensor:
    prompt, known = rows.prompt, rows.prompt_mask
    seen = torch.cat([known.repeat_interleave(rows.group_size, 0), rows.present[:, :-1]], 1)
    last = prompt[:, -1:].repeat_interleave(rows.group_size, 0)
    cache = DynamicCache()
    with policy.precision():
        decoder(
            input_ids=prompt[:, :-1],
            attention_mask=known[:, :-1].long(),
            position_ids=positions(known)[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_repeat_interleave(rows.group_size)
        output = decoder(
            input_ids=torch.cat([last, rows.token[:, :-1]], 1),
            attention_mask=seen.long(),
            position_ids=positions(seen)[:, prompt.shape[1] - 1 :],
            past_key_values=cache,
            use_cache=True,
        )
    return output.last_hidden_state


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
