# SPDX-License-Identifier: Apache-2.0
"""What the losses over answers, one row each, have in common: checks, selection, metrics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.backends.eager.preference_loss import Coefficients
from rlkern.ops import _check as check
from rlkern.ops._library import graph_numbers

_BELOW = {"label_smoothing": 0.5}
_ANY_SIGN = ("reward_shift", "alpha")


class Rows(NamedTuple):
    """The rows of a batch; where the mask is False nothing of them is used, without one all is."""

    op: str
    like: Tensor
    mask: Tensor | None

    @staticmethod
    def of(op: str, name: str, x: Tensor, mask: Tensor | None) -> "Rows":
        check.tensor(op, name, x, check.FLOATS)
        if x.ndim != 1:
            raise ValueError(f"{op}: {name} must be (B,), got {check.describe(x)}")
        if mask is not None:
            check.like(op, "mask", mask, x.shape, x, (torch.bool,))
        return Rows(op, x, mask)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: float32, or float64 for float64 rows."""
        return torch.float64 if self.like.dtype == torch.float64 else torch.float32

    def counted(self) -> Tensor:
        """Returns the mask, all True where none was given."""
        every = torch.ones_like(self.like, dtype=torch.bool)
        return every if self.mask is None else self.mask

    def select(self, name: str, x: Tensor, filling: float) -> Tensor:
        """Returns x in the dtype of the computation, the filling where masked."""
        check.like(self.op, name, x, self.like.shape, self.like, check.FLOATS)
        if check.checks_values():
            check.finite_values(self.op, name, x, self.counted())
        x = x if x.dtype == self.dtype else x.to(self.dtype)
        return x if self.mask is None else torch.where(self.mask, x, filling)

    def logprobs(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns log-probabilities, −1 where masked: every loss is finite there."""
        return [self.select(name, x, -1.0) for name, x in named.items()]

    def lengths(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns numbers of tokens as floats, 1 where masked."""
        found = []
        for name, x in named.items():
            check.tensor(self.op, name, x, (*check.INTEGERS, *check.FLOATS))
            length = self.select(name, x.to(self.dtype), 1.0)
            if check.checks_values() and (length < 0).any():
                raise ValueError(
                    f"{self.op}: {name} must be at least 0 where mask is True, "
                    f"got {length.min().item()}"
                )
            found.append(length)
        return found

    def weights(self, weight: Tensor | None) -> float | Tensor:
        """Returns the weight of each row: the mean over the counted ones by default."""
        if weight is None and self.mask is None:
            return aggregate.equal_weight(self.like.shape[0])
        if weight is None:
            return aggregate.token_weight(self.counted()[None], dtype=self.dtype)[0]
        return self.select("weight", weight.detach(), 0.0)


def coefficients(
    op: str, named: Mapping[str, float], positive: Sequence[str] = ("beta",)
) -> Coefficients:
    """Returns checked numbers, as a graph of torch.compile takes them without a guard."""
    for name, x in named.items():
        value = check.number(op, name, x)
        if name in positive and value <= 0:
            raise ValueError(f"{op}: {name} must be greater than 0, got {value}")
        if name == "alpha" and value == 0:
            raise ValueError(f"{op}: alpha must not be 0, the limit that needs no alpha, got {x}")
        if name not in _ANY_SIGN and value < 0:
            raise ValueError(f"{op}: {name} must be at least 0, got {value}")
        if value >= _BELOW.get(name, float("inf")):
            raise ValueError(f"{op}: {name} must be less than {_BELOW[name]}, got {value}")
    return dict(zip(named, graph_numbers(list(named.values())), strict=True))


def weighted_sum(weight: float | Tensor, loss: Tensor) -> Tensor:
    """Returns Σ weight·loss over the rows that count."""
    if not isinstance(weight, Tensor):
        return (weight * loss).sum()
    return torch.where(weight != 0, weight * loss, 0.0).sum()


def preference_metrics(
    masks: tuple[Tensor, Tensor, Tensor],
    rewards: Sequence[Tensor],
    right: Tensor,
    logprobs: Sequence[Tensor],
) -> Tensor:
    """Returns PREFERENCE_METRICS; the masks say which rows are chosen, rejected and judged."""
    chosen, rejected, judged = masks
    one, right = torch.ones_like(rewards[0]), right.to(rewards[0].dtype)
    with torch.no_grad():
        fields = torch.stack([one, one, one, *rewards, right, *logprobs])
        which = torch.stack([*masks, chosen, rejected, judged, chosen, rejected])
        return torch.where(which, fields, 0.0).sum(-1, dtype=torch.float64)


def pair_metrics(rows: Rows, rewards: Sequence[Tensor], logprobs: Sequence[Tensor]) -> Tensor:
    """Returns PREFERENCE_METRICS of pairs, judged rightly where the chosen answer has more."""
    with torch.no_grad():
        right = rewards[0] > rewards[1]
        if rows.mask is not None:
            return preference_metrics((rows.mask,) * 3, rewards, right, logprobs)
        fields = torch.stack([*rewards, right.to(rewards[0].dtype), *logprobs])
        sums = fields.sum(-1, dtype=torch.float64)
        return torch.cat([sums.new_full((3,), right.shape[0]), sums])
