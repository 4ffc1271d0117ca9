# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the token objective: surrogate, KL and entropy terms of one token.

ℓ = correction · gate(log π, log r, A) + kl_coef · KL(log π, log π_ref) − entropy_coef · H

The gates are in gates.py, the levels that make log r in levels.py, the KL estimators in kl.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends.eager.autograd import recording
from rlkern.backends.eager.gates import GATE_COEFFICIENTS, GATES, Gated
from rlkern.backends.eager.kl import KL_ESTIMATORS, k1, k2, k3
from rlkern.backends.eager.levels import LEVELS, Sequences

# Sums over the counted tokens, then the smallest and the largest ratio.
SUMMED_METRICS = (
    "count",
    "logprob",
    "entropy",
    "kl",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "old_kl",
    "ratio",
    "clip_low",
    "clip_high",
    "correction",
)
METRICS = (*SUMMED_METRICS, "ratio_min", "ratio_max")


class Objective(NamedTuple):
    """A token objective in names and numbers."""

    gate: str
    level: str
    kl: str
    gate_coef: tuple[float, ...]
    kl_coef: float
    entropy_coef: float

    @property
    def numbers(self) -> tuple[float, ...]:
        """Returns all coefficients in one row: of the gate, of the KL, of the entropy."""
        return (*self.gate_coef, self.kl_coef, self.entropy_coef)

    @staticmethod
    def of(gate: str, level: str, kl: str, numbers) -> "Objective":
        """Returns the objective whose numbers these are."""
        *gate_coef, kl_coef, entropy_coef = numbers
        return Objective(gate, level, kl, tuple(gate_coef), kl_coef, entropy_coef)


class Rows(NamedTuple):
    """What is known of each token beside its distribution; all of the same shape.

    Tokens of weight 0 do not count and are not read. Without old_logprob the batch is on policy:
    the ratio is 1 and its gradient that of log π. correction multiplies the gate's loss.
    """

    advantage: Tensor
    weight: Tensor
    old_logprob: Tensor | None = None
    ref_logprob: Tensor | None = None
    correction: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        """Returns the rows with every vector that is there changed."""
        return Rows(*(None if x is None else change(x) for x in self))  # type: ignore[arg-type]

    def selected(self) -> "Rows":
        """Returns the rows with zeros wherever a token does not count."""
        counted = self.weight != 0
        return self.each(lambda x: torch.where(counted, x.detach(), 0.0))


def gated(logprob: Tensor, rows: Rows, objective: Objective, sequences: Sequences):
    """Returns (what the gate makes of each token, the log ratio it saw, the token's own)."""
    old = logprob.detach() if rows.old_logprob is None else rows.old_logprob
    # Selected here too, for the gradient: a sequence's ratio has none in tokens that do not count.
    own = torch.where(rows.weight != 0, logprob - old, 0.0)
    level = LEVELS[objective.level](
        own, rows.advantage, rows.weight != 0, sequences, *objective.gate_coef
    )
    ratio = level.log_ratio
    if rows.correction is not None:  # a correction of 0 drops a loss whose slope may be infinite
        ratio = torch.where(rows.correction == 0, ratio.detach(), ratio)
    gate = GATES[objective.gate](logprob, ratio, rows.advantage, *objective.gate_coef)
    low, high = gate.clip_low | level.clip_low, gate.clip_high | level.clip_high
    return Gated(gate.loss, low, high), level.log_ratio, own


def token_loss(
    logprob: Tensor,
    entropy: Tensor,
    rows: Rows,
    objective: Objective,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns the loss of each token, differentiable in logprob and entropy."""
    gate, _, own = gated(logprob, rows, objective, Sequences(logprob.shape, cu_seqlens))
    loss = gate.loss
    if rows.correction is not None:
        loss = torch.where(rows.correction == 0, 0.0, rows.correction * loss)
    if rows.ref_logprob is not None and objective.kl_coef != 0:
        divergence = KL_ESTIMATORS[objective.kl](logprob, rows.ref_logprob, own)
        loss = loss + objective.kl_coef * divergence
    return loss - objective.entropy_coef * entropy


def token_metrics(
    logprob: Tensor, entropy: Tensor, rows: Rows, objective: Objective, cu_seqlens: Tensor | None
) -> Tensor:
    """Returns the METRICS of the counted tokens; ratio and clips are those the gate saw."""
    counted = rows.weight != 0
    gate, log_ratio, own = gated(logprob, rows, objective, Sequences(logprob.shape, cu_seqlens))
    ratio = log_ratio.exp()
    divergences = [torch.zeros_like(logprob)] * 4
    if (ref := rows.ref_logprob) is not None:
        estimators = (KL_ESTIMATORS[objective.kl], k1, k2, k3)
        divergences = [estimator(logprob, ref, own) for estimator in estimators]
    one = torch.ones_like(logprob)
    sums = [
        one,
        logprob,
        entropy,
        *divergences,
        k3(-own, torch.zeros_like(own), own),  # the old policy drew the token: KL(π_old‖π)
        ratio,
        gate.clip_low.to(logprob.dtype),
        gate.clip_high.to(logprob.dtype),
        one if rows.correction is None else rows.correction,
    ]
    fields = [torch.where(counted, x, 0.0).sum() for x in sums]
    smallest = torch.where(counted, ratio, torch.inf).flatten()
    largest = torch.where(counted, ratio, -torch.inf).flatten()
    infinity = smallest.new_full((1,), torch.inf)  # an empty batch has no smallest ratio
    fields += [torch.cat([smallest, infinity]).amin(), torch.cat([largest, -infinity]).amax()]
    return torch.stack(fields)


def token_objective(
    logprob: Tensor,
    entropy: Tensor,
    rows: Rows,
    cu_seqlens: Tensor | None,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_logprob, grad_entropy) of loss = Σ weight·ℓ, of (B, T) tokens.

    A sequence is a row, or what cu_seqlens says of the flattened rows.
    """
    assert len(objective.gate_coef) == GATE_COEFFICIENTS
    counted = rows.weight != 0
    rows = rows.selected()
    logprob, entropy = (torch.where(counted, x.detach(), 0.0) for x in (logprob, entropy))
    with recording():
        logprob = logprob.requires_grad_()
        entropy = entropy.requires_grad_()
        row_loss = token_loss(logprob, entropy, rows, objective, cu_seqlens)
        loss = torch.where(counted, rows.weight * row_loss, 0.0).sum()
        grad_logprob, grad_entropy = torch.autograd.grad(loss, (logprob, entropy))
    with torch.no_grad():
        metrics = token_metrics(logprob, entropy, rows, objective, cu_seqlens)
    return loss.detach(), metrics, grad_logprob, grad_entropy
