# SPDX-License-Identifier: Apache-2.0
"""Preference pairs from answers of the starting model, sorted by the reward."""

from __future__ import annotations

import torch

from rlkern.runs.errors import UserError
from rlkern.trainer.collect import generate, rewarded
from rlkern.trainer.offline.pairs import Pair, Pairs
from rlkern.trainer.parts import Parts
from rlkern.trainer.rollout.text import token_ids
from rlkern.trainer.tasks.task import Item


def sampled_pairs(parts: Parts) -> Pairs:
    """Returns a pair of the model's own answers to each training and each held-out prompt that has
    answers which the reward tells apart."""
    settings, task = parts.settings, parts.task
    items, _ = task.next_items(0, settings.pairs.items)
    found = Pairs(_sample(parts, items), _sample(parts, task.held_out))
    if len(found.train) < settings.batch.prompts or not found.held_out:
        raise UserError(
            f"only {len(found.train)} of {len(items)} training prompts and {len(found.held_out)} of"
            f" {len(task.held_out)} held-out ones had both a better and a worse answer among"
            f" {settings.rollout.group_size}; raise pairs.items or rollout.group_size, or start"
            " from a model that is right now and then (sft.steps, model)"
        )
    return found


def _sample(parts: Parts, items: list[Item]) -> list[Pair]:
    G, stop = parts.settings.rollout.group_size, parts.sampling.stop
    at_once, found = max(1, parts.settings.eval.batch // G), list[Pair]()
    for first in range(0, len(items), at_once):
        part = items[first : first + at_once]
        rows = generate(parts, parts.policy, part, parts.sampling, G)
        ended = (torch.isin(rows.token, stop) & rows.mask).any(-1).tolist()
        rows = rewarded(parts, part, rows)
        assert rows.reward is not None and rows.text is not None
        reward, text, ids = rows.reward.tolist(), rows.text, token_ids(rows)
        for q, item in enumerate(part):
            # No text tells where an answer that was cut off would have ended, so it is no example.
            known = [b for b in range(q * G, q * G + G) if ended[b] and reward[b] == reward[b]]
            if known:
                best, worst = max(known, key=reward.__getitem__), min(known, key=reward.__getitem__)
                if reward[best] > reward[worst] and text[best] != text[worst]:
                    said = ids["completion_ids"]
                    own = (ids["prompt_ids"][best], said[best], said[worst])
                    found.append(Pair(item.asked or "", text[best], text[worst], own))
    return found
