# SPDX-License-Identifier: Apache-2.0
"""Rows that grow by the messages of an environment, and by what the model says to them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlkern.runs.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.text import Prompts, left_padded
from rlkern.trainer.rows import Rows


def given_messages(policy: Policy, found: Rows, rows: list[list[int]]) -> Rows:
    """Returns the tokens of the environment's messages as rows that are present and do not
    count."""
    width = max(map(len, rows))
    token = [row + [0] * (width - len(row)) for row in rows]
    present = [[t < len(row) for t in range(width)] for row in rows]
    ids = torch.tensor(token, dtype=torch.int64, device=policy.device)
    real = torch.tensor(present, dtype=torch.bool, device=policy.device)
    return Rows(
        prompt=found.prompt,
        prompt_mask=found.prompt_mask,
        token=ids,
        mask=torch.zeros_like(real),
        present=real,
        rollout_logprob=torch.zeros(ids.shape).to(ids.device),
    )


def so_far(policy: Policy, found: Rows, going: list[int], width: int) -> Prompts:
    """Returns the conversations of some rows as prompts; Raises UserError if one is too long."""
    group = found.group_size
    rows = []
    for row in going:
        prompt = found.prompt[row // group][found.prompt_mask[row // group]]
        rows.append(torch.cat([prompt, found.token[row][found.present[row]]]).tolist())
    longest = max(map(len, rows))
    if longest + width > policy.context:
        raise UserError(
            f"a conversation of {longest} tokens and {width} new ones do not fit the model's"
            f" context of {policy.context}; lower rollout.max_turns or rollout.max_new_tokens"
        )
    return left_padded(policy, rows)


_GROWING = ("token", "mask", "present", "rollout_logprob", "keep")


def appended(found: Rows, index: Tensor, more: Rows) -> Rows:
    """Returns the rows, those of the index with the tokens of `more` right behind their own."""
    start, width = found.token.shape[1], more.token.shape[1]
    kept = max(0 if x.keep is None else x.keep.shape[2] for x in (found, more))
    whole = found.widened(found.prompt.shape[1], start + width, kept)
    more = more.widened(more.prompt.shape[1], width, kept)
    grown = {}
    for name in _GROWING[: None if kept else -1]:
        x = getattr(whole, name).clone()
        x[index, start:] = getattr(more, name)
        grown[name] = x
    # Then what is real comes first in each row, in its order.
    present = grown["present"]
    order = torch.argsort(present.logical_not().byte(), dim=-1, stable=True)
    order = order[:, : int(present.sum(-1).max())]
    for name, x in grown.items():
        places = order if x.ndim == 2 else order[..., None].expand(-1, -1, x.shape[2])
        grown[name] = x.gather(1, places)
    return replace(whole, **grown)
