# SPDX-License-Identifier: Apache-2.0
"""The one place that shifts: hidden states whose position t scores completion token t."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import rlkern
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.data import Rollout, positions


def hidden_states(
    policy: Policy, rollout: Rollout, *, share_prompts: bool, decoder: Any = None
) -> Tensor:
    """Returns hidden states (B, T, H) with hidden[b, t] scoring rollout.token[b, t].

    share_prompts runs each prompt once and lets its completions attend to the cached keys and
    values; gradients flow through the cache, so the result is that of whole rows. They are those of
    `decoder` where one is given, such as a critic's, and else the policy's own.
    """
    run = _shared if share_prompts and rollout.prompts.token.shape[1] > 1 else _whole_rows
    return run(policy, rollout, policy.head.decoder if decoder is None else decoder)


def _whole_rows(policy: Policy, rollout: Rollout, decoder: Any) -> Tensor:
    prompt = rollout.prompts.token.repeat_interleave(rollout.group_size, 0)
    seen = torch.cat(
        [rollout.prompts.mask.repeat_interleave(rollout.group_size, 0), rollout.present], 1
    )
    with policy.precision():
        output = decoder(
            input_ids=torch.cat([prompt, rollout.token], 1),
            attention_mask=seen.long(),
            position_ids=positions(seen),
            use_cache=False,
        )
    return output.last_hidden_state[:, prompt.shape[1] - 1 : -1]


def _shared(policy: Policy, rollout: Rollout, decoder: Any) -> Tensor:
    prompt, known = rollout.prompts.token, rollout.prompts.mask
    seen = torch.cat([known.repeat_interleave(rollout.group_size, 0), rollout.present[:, :-1]], 1)
    last = prompt[:, -1:].repeat_interleave(rollout.group_size, 0)
    cache = DynamicCache()
    with policy.precision():
        decoder(
            input_ids=prompt[:, :-1],
            attention_mask=known[:, :-1].long(),
            position_ids=positions(known)[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_repeat_interleave(rollout.group_size)
        output = decoder(
            input_ids=torch.cat([last, rollout.token[:, :-1]], 1),
            attention_mask=seen.long(),
            position_ids=positions(seen)[:, prompt.shape[1] - 1 :],
            past_key_values=cache,
            use_cache=True,
        )
    return output.last_hidden_state


@torch.no_grad()
def score(
    policy: Policy,
    rollout: Rollout,
    *,
    temperature: float,
    share_prompts: bool,
    pieces: list[tuple[int, int]],
) -> Tensor:
    """Returns the log-probabilities (B, T) of a rollout's tokens under a policy,
    without gradient."""
    found = []
    for first, last in pieces:
        part = rollout.piece(first, last)
        hidden = hidden_states(policy, part, share_prompts=share_prompts)
        head = policy.head.parameters()
        with policy.precision():
            scored = rlkern.linear_token_logprob(
                hidden, head.pop("weight"), part.token, temperature=temperature, mask=part.mask,
                keep=part.keep, **head,
            )  # fmt: skip
        found.append(scored.logprob)
    return torch.cat([rollout.rollout_logprob[:0], *found])  # a process may have no rows
