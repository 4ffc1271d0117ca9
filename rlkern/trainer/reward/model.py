# SPDX-License-Identifier: Apache-2.0
"""Reward models: a language model with one output in place of its head, scoring whole answers.

Stored as transformers' …ForSequenceClassification, so that others read ours and we read theirs.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkern.runs.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.models.stored import read_model
from rlkern.trainer.rollout.text import PADDING, any_text, given_rows
from rlkern.trainer.rows import Rows

_CLASS = "ForSequenceClassification"


def is_scorer(policy: Policy) -> bool:
    """Returns True for a model that has a score in place of the head of a language model."""
    return type(policy.model).__name__.endswith(_CLASS)


def make_scorer(policy: Policy) -> Policy:
    """Returns a reward model around the trunk of a language model, every answer scored 0.

    The trunk is the policy's own, not a copy.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(policy.model.config)
    config.num_labels, config.tie_word_embeddings = 1, False
    pad = policy.tokenizer.pad_token_id
    # Others pool by it; a model cannot have it where its embeddings do not.
    config.pad_token_id = pad if pad is None or pad < config.vocab_size else None
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise UserError(
            f"a model of type {config.model_type} cannot become a reward model: transformers has no"
            " sequence classification for it"
        ) from error
    setattr(model, model.base_model_prefix, policy.model.base_model)
    weight = policy.model.get_input_embeddings().weight
    model.score = torch.nn.Linear(weight.shape[1], 1, bias=False).to(weight.device, weight.dtype)
    torch.nn.init.zeros_(model.score.weight)
    return dataclasses.replace(policy, model=model.eval())


def load_scorer(directory: Path, *, device: torch.device, dtype: str) -> Policy:
    """Returns the reward model stored in a folder in Hugging Face format; Raises UserError for a
    folder that holds something else."""
    from transformers import AutoModelForSequenceClassification as Kind

    check_scorer(directory)
    model, tokenizer = read_model(directory, Kind, dtype, what="reward model", hint="")
    model.config.pad_token_id = tokenizer.pad_token_id
    return Policy(torch.nn.Module.to(model, device).eval(), tokenizer, device, dtype == "mixed")


def check_scorer(directory: Path) -> None:
    """Raises UserError, before anything is loaded, for a folder without a reward model."""
    try:
        config = json.loads((directory / "config.json").read_text())
        held = (config.get("architectures") or ["a model of no known class"])[0]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"reward model {str(directory)!r} cannot be read: {error}") from error
    outputs = len(config.get("id2label") or "12")
    if not held.endswith(_CLASS) or outputs != 1:
        what = f"{held} with {outputs} outputs" if held.endswith(_CLASS) else held
        raise UserError(
            f"reward model {str(directory)!r} must hold a …{_CLASS} with one output, it holds"
            f" {what}; make one with an algorithm that trains a reward model"
        )


def scores(policy: Policy, rows: Rows) -> Tensor:
    """Returns the score (B,) of each answer: the model's output at its last token."""
    token, seen = right_padded(rows, PADDING)
    last = seen.sum(1) - 1
    # Not by the model's own forward, which goes by the id of padding: where a tokenizer pads with
    # its end of text, that would read the token before the end.
    with policy.precision():
        found = policy.model.base_model(
            input_ids=token, attention_mask=seen.long(), use_cache=False
        )
        hidden = found.last_hidden_state[torch.arange(len(last), device=last.device), last]
        return policy.model.score(hidden)[:, 0].float()


def right_padded(rows: Rows, fill: int) -> tuple[Tensor, Tensor]:
    """Returns prompts and answers in one row each, (B, P + T), all padding on the right, and where
    they are real: what transformers' classifiers pool by."""
    G = rows.group_size
    token = torch.cat([rows.prompt.repeat_interleave(G, 0), rows.token], 1)
    seen = torch.cat([rows.prompt_mask.repeat_interleave(G, 0), rows.present], 1)
    order = (~seen).long().argsort(dim=1, stable=True)
    token, seen = token.gather(1, order), seen.gather(1, order)
    width = int(seen.sum(1).max())
    return torch.where(seen, token, fill)[:, :width], seen[:, :width]


class RewardModel:
    """A trained reward model as a reward function, f(prompts, completions) -> scores."""

    __name__ = "reward_model"
    reads_text = True

    def __init__(self, policy: Policy, *, batch: int = 64):
        self.policy, self._batch = policy, batch

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """Returns the score of each completion; every one counts as ended."""
        # Of a conversation the prompts are only its last message.
        asked = [item.asked for item in columns.get("item", [])] or list(prompts)
        found: list[float | None] = []
        for first in range(0, len(prompts), self._batch):
            some = slice(first, first + self._batch)
            rows = given_rows(
                self.policy, asked[some], list(completions[some]), stop="", check=any_text
            )
            found += scores(self.policy, rows).tolist()
        return found


def load_reward_model(folder: Path, *, device: torch.device, dtype: str) -> RewardModel:
    """Returns the reward model of a folder as a reward function; Raises UserError if there is
    none."""
    policy = load_scorer(folder, device=device, dtype=dtype)
    policy.model.requires_grad_(False)
    return RewardModel(policy)
