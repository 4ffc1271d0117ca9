# SPDX-License-Identifier: Apache-2.0
"""What the losses of a rollout read, and how it is cut into optimizer steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import rlkern
from rlkern.trainer.config import Config
from rlkern.trainer.rollout.data import Rollout


@dataclass
class Batch:
    """A rollout of B = Q·G answers with what the losses read, all (B,) or (B, T).

    advantage (B,) or (B, T); weight of each token in the policy's loss; old_logprob, ref_logprob,
    correction; for a critic old_value, value_target and value_weight.
    """

    rollout: Rollout
    advantage: Tensor
    weight: Tensor
    old_logprob: Tensor | None = None
    ref_logprob: Tensor | None = None
    correction: Tensor | None = None
    old_value: Tensor | None = None
    value_target: Tensor | None = None
    value_weight: Tensor | None = None

    def piece(self, first: int, last: int) -> Batch:
        """Returns the answers to prompts first..last-1, their weights as they are."""
        G = self.rollout.group_size
        rows = slice(first * G, last * G)
        return self._map(self.rollout.piece(first, last), lambda x: x[rows])

    def take(self, prompts: Tensor) -> Batch:
        """Returns the answers to some prompts, by index, repeated where an index is."""
        rows = self.rollout.rows_of(prompts)
        return self._map(self.rollout.take(prompts), lambda x: x[rows])

    def _map(self, rollout: Rollout, function: Callable[[Tensor], Tensor]) -> Batch:
        names = [f.name for f in dataclasses.fields(self) if f.name != "rollout"]
        rows = {name: getattr(self, name) for name in names}
        kept = {name: None if x is None else function(x) for name, x in rows.items()}
        return Batch(rollout, **kept)  # type: ignore[arg-type]

    def arguments(self, config: Config, coefficients: dict) -> dict:
        """Returns what rlkern.policy_loss takes beside the scores."""
        return {
            "token": self.rollout.token,
            "advantage": self.advantage,
            "mask": self.rollout.mask,
            "old_logprob": self.old_logprob,
            "ref_logprob": self.ref_logprob,
            "correction": self.correction,
            "weight": self.weight,
            "keep": self.rollout.keep,
            "temperature": config.temperature,
            "algorithm": config.algorithm,
            **coefficients,
        }


def weighted(batch: Batch, copies: Tensor | None, mode: str, constant: float | None) -> Batch:
    """Returns the batch with the weights of its own counts; copies (B,) counts each answer."""
    mask = batch.rollout.mask
    if copies is None:
        weight = rlkern.aggregate.token_weight(mask, mode, constant=constant)
    else:
        weight = rlkern.sampling.multiplicity_weight(mask, copies, mode, constant=constant)
    value = None
    if batch.value_target is not None:
        value = rlkern.aggregate.token_weight(mask, "token_mean")
    return dataclasses.replace(batch, weight=weight, value_weight=value)


def minibatches(
    prompts: int, epochs: int, count: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yields the prompts of each optimizer step: all of them in each epoch, in a new order where
    they are split.

    >>> steps = list(minibatches(4, 1, 2, torch.Generator().manual_seed(0)))
    >>> sorted(torch.cat(steps).tolist()), [len(x) for x in steps]
    ([0, 1, 2, 3], [2, 2])
    """
    for _ in range(epochs):
        if count == 1:
            yield torch.arange(prompts)
            continue
        order = torch.randperm(prompts, generator=generator)
        edges = [prompts * i // count for i in range(count + 1)]
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            if first < last:
                yield order[first:last].sort().values
