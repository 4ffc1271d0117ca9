# SPDX-License-Identifier: Apache-2.0
"""What the losses over answers, one row each, have in common: checks, selection, metrics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.ops import check
from rlkern.ops.library import number_tensor
from rlkern.reference.preference_loss import Coefficients

# Sums, in float64: the vectors of micro-batches and ranks add up. An answer is chosen if it is the
# better of a pair or desirable alone; right counts the pairs or answers that are judged so.
PREFERENCE_METRICS = (
    "chosen", "rejected", "judged", "chosen_reward", "rejected_reward", "right",
    "chosen_logprob", "rejected_logprob",
)  # fmt: skip
_BELOW = {"label_smoothing": 0.5, "alpha": 1.0}
_ANY_SIGN = ("reward_shift",)


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
        x = x.to(self.dtype)
        return x if self.mask is None else torch.where(self.mask, x, filling)

    def logprobs(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns log-probabilities, −1 where masked: every loss is finite there."""
        return [self.select(name, x, -1.0) for name, x in named.items()]

    def lengths(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns numbers of tokens as floats, 1 where masked."""
        for name, x in named.items():
            check.tensor(self.op, name, x, (*check.INTEGERS, *check.FLOATS))
            check.positive_values(self.op, name, x, self.mask)
        return [self.select(name, x.to(self.dtype), 1.0) for name, x in named.items()]

    def weights(self, weight: Tensor | None) -> Tensor:
        """Returns the weight of each row: the mean over the counted ones by default."""
        if weight is None:
            return aggregate.token_weight(self.counted()[None])[0]
        return self.select("weight", weight.detach(), 0.0)


def coefficients(
    op: str, named: Mapping[str, float], positive: Sequence[str] = ("beta",)
) -> Coefficients:
    """Returns numbers as scalar tensors, which torch.compile does not specialise on."""
    for name, x in named.items():
        value = check.number(op, name, x)
        if name in positive and value <= 0:
            raise ValueError(f"{op}: {name} must be greater than 0, got {value}")
        if name not in _ANY_SIGN and value < 0:
            raise ValueError(f"{op}: {name} must be at least 0, got {value}")
        if value >= _BELOW.get(name, float("inf")):
            raise ValueError(f"{op}: {name} must be less than {_BELOW[name]}, got {value}")
    return dict(zip(named, number_tensor(list(named.values())).unbind(), strict=True))


def weighted_sum(weight: Tensor, loss: Tensor) -> Tensor:
    """Returns Σ weight·loss over the rows that count."""
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


def preference_metrics_dict(metrics: Tensor) -> dict[str, float]:
    """Returns the metrics of a preference loss by name. Reads the vector: synchronises.

    rewards/{chosen,rejected,margins,accuracies} and logps/{chosen,rejected} as TRL names them, and
    count. The vectors hold sums: those of micro-batches and of ranks add up.

    >>> vector = torch.tensor([2.0, 2.0, 2.0, 3.0, 1.0, 1.0, -8.0, -9.0])
    >>> found = preference_metrics_dict(vector)
    >>> found["rewards/margins"], found["rewards/accuracies"], found["logps/chosen"]
    (1.0, 0.5, -4.0)
    """
    if metrics.shape != (len(PREFERENCE_METRICS),):
        expected, got = len(PREFERENCE_METRICS), check.describe(metrics)
        raise ValueError(f"preference_metrics_dict: metrics must be ({expected},), got {got}")
    m = dict(zip(PREFERENCE_METRICS, metrics.tolist(), strict=True))
    chosen, rejected, judged = (max(m[name], 1.0) for name in ("chosen", "rejected", "judged"))
    better, worse = m["chosen_reward"] / chosen, m["rejected_reward"] / rejected
    return {
        "count": m["judged"],
        "rewards/chosen": better,
        "rewards/rejected": worse,
        "rewards/margins": better - worse,
        "rewards/accuracies": m["right"] / judged,
        "logps/chosen": m["chosen_logprob"] / chosen,
        "logps/rejected": m["rejected_logprob"] / rejected,
    }
