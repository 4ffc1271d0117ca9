# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the token objective: surrogate, KL and entropy terms of one token.

    Σ weight·(correction·gate(log π, log r, A) + kl_coef·KL(log π, log π_ref)
              + penalty·|log π − log π_old|)
    − entropy_coef·Σ entropy_weight·H − Σ nll_weight·log π

The gates are in gates.py, the levels that make log r in levels.py, the KL estimators in kl.py.
log r is clamped to [log_ratio_min, log_ratio_max], the KL to ±kl_max.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends.eager.autograd import recordable, recording
from rlkern.backends.eager.gates import GATE_COEFFICIENTS, GATES, Gated
from rlkern.backends.eager.kl import k1, k2, k3, kl_term
from rlkern.backends.eager.levels import LEVELS, Sequences, clamped

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
    "old_kl_k1",
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
    log_ratio_min: float = -math.inf
    log_ratio_max: float = math.inf
    kl_max: float = math.inf

    @property
    def numbers(self) -> tuple[float, ...]:
        """Returns all coefficients in one row: those of the gate, then the fields after them."""
        return (*self.gate_coef, *self[4:])

    @staticmethod
    def of(gate: str, level: str, kl: str, numbers) -> "Objective":
        """Returns the objective whose numbers these are."""
        gate_coef = tuple(numbers[:GATE_COEFFICIENTS])
        return Objective(gate, level, kl, gate_coef, *numbers[GATE_COEFFICIENTS:])


class Rows(NamedTuple):
    """What is known of each token beside its distribution; all of the same shape.

    Tokens of weight 0 do not count and are not read. Without old_logprob the batch is on policy:
    the ratio is 1 and its gradient that of log π; so it is of a token whose old_logprob is NaN, as
    samplers report what they do not know. correction multiplies the gate's loss, penalty
    the distance |log π − log π_old| of the token. entropy_weight stands in for weight in the
    entropy term; nll_weight adds negative log-likelihood.
    """

    advantage: Tensor
    weight: Tensor
    old_logprob: Tensor | None = None
    ref_logprob: Tensor | None = None
    correction: Tensor | None = None
    penalty: Tensor | None = None
    entropy_weight: Tensor | None = None
    nll_weight: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        """Returns the rows with every vector that is there changed."""
        return Rows(*(None if x is None else change(x) for x in self))  # type: ignore[arg-type]

    def selected(self) -> "Rows":
        """Returns the rows with zeros wherever a token does not count."""
        counted = self.weight != 0
        return self.each(lambda x: torch.where(counted, x.detach(), 0.0))


def gated(logprob: Tensor, rows: Rows, objective: Objective, sequences: Sequences):
    """Returns (what the gate makes of each token, the log ratio it saw, the token's own)."""
    old = here = logprob.detach()
    if rows.old_logprob is not None:
        old = torch.where(rows.old_logprob.isnan(), here, rows.old_logprob)
    # Selected here too, for the gradient: a sequence's ratio has none in tokens that do not count.
    own = torch.where(rows.weight != 0, logprob - old, 0.0)
    level = LEVELS[objective.level](
        own, rows.advantage, rows.weight != 0, sequences, *objective.gate_coef
    )
    seen = clamped(level.log_ratio, objective.log_ratio_min, objective.log_ratio_max)
    ratio = seen
    if rows.correction is not None:  # a correction of 0 drops a loss whose slope may be infinite
        ratio = torch.where(rows.correction == 0, seen.detach(), seen)
    gate = GATES[objective.gate](logprob, ratio, rows.advantage, *objective.gate_coef)
    low, high = gate.clip_low | level.clip_low, gate.clip_high | level.clip_high
    return Gated(gate.loss, low, high), seen, own


def token_loss(
    logprob: Tensor,
    entropy: Tensor,
    rows: Rows,
    objective: Objective,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns the weighted loss of each token, differentiable in logprob and entropy."""
    gate, seen, own = gated(logprob, rows, objective, Sequences(logprob.shape, cu_seqlens))
    loss = gate.loss
    if rows.correction is not None:
        loss = torch.where(rows.correction == 0, 0.0, rows.correction * loss)
    if (ref := rows.ref_logprob) is not None and objective.kl_coef != 0:
        divergence = kl_term(objective.kl, objective.kl_max, logprob, ref, own, seen)
        loss = loss + objective.kl_coef * divergence
    # Selected: where there is no weight, an infinite factor is 0 too.
    if (penalty := rows.penalty) is not None:
        loss = loss + torch.where(penalty != 0, penalty * own.abs(), 0.0)
    of_entropy = rows.weight if rows.entropy_weight is None else rows.entropy_weight
    loss = rows.weight * loss - objective.entropy_coef * of_entropy * entropy
    if (nll := rows.nll_weight) is not None:
        loss = loss - torch.where(nll != 0, nll * logprob, 0.0)
    return loss


def token_terms(
    logprob: Tensor,
    entropy: Tensor,
    rows: Rows,
    objective: Objective,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns the terms whose sum is the loss, one of each token; 0 where the weight is."""
    loss = token_loss(logprob, entropy, rows, objective, cu_seqlens)
    return torch.where(rows.weight != 0, loss, 0.0)


def token_metrics(
    logprob: Tensor, entropy: Tensor, rows: Rows, objective: Objective, cu_seqlens: Tensor | None
) -> Tensor:
    """Returns the METRICS of the counted tokens; ratio, clips and kl are those the loss saw."""
    counted = rows.weight != 0
    gate, seen, own = gated(logprob, rows, objective, Sequences(logprob.shape, cu_seqlens))
    ratio = seen.exp()
    divergences = [torch.zeros_like(logprob)] * 4
    if (ref := rows.ref_logprob) is not None:
        divergences = [estimator(logprob, ref, own) for estimator in (k1, k2, k3)]
        divergences.insert(0, kl_term(objective.kl, objective.kl_max, logprob, ref, own, seen))
    one = torch.ones_like(logprob)
    sums = [
        one,
        logprob,
        entropy,
        *divergences,
        k3(-own, torch.zeros_like(own), own),  # the old policy drew the token: KL(π_old‖π)
        -own,  # the same divergence by k1
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
    """Returns (loss, metrics, grad_logprob, grad_entropy) of the loss of (B, T) tokens.

    A sequence is a row, or what cu_seqlens says of the flattened rows.
    """
    assert len(objective.gate_coef) == GATE_COEFFICIENTS
    counted = rows.weight != 0
    rows = rows.selected()
    logprob, entropy = (torch.where(counted, x.detach(), 0.0) for x in (logprob, entropy))
    with recording():
        logprob, entropy = recordable(logprob), recordable(entropy)
        rows = rows.each(recordable)
        if cu_seqlens is not None:
            cu_seqlens = recordable(cu_seqlens)
        logprob.requires_grad_()
        entropy.requires_grad_()
        loss = token_terms(logprob, entropy, rows, objective, cu_seqlens).sum()
        grad_logprob, grad_entropy = torch.autograd.grad(loss, (logprob, entropy))
    with torch.no_grad():
        metrics = token_metrics(logprob, entropy, rows, objective, cu_seqlens)
    return loss.detach(), metrics, grad_logprob, grad_entropy
