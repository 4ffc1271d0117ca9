# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the token objective: surrogate, KL and entropy terms of one token.

ℓ = gate(log π, log π_old, A) + kl_coef · KL(log π, log π_ref) − entropy_coef · H

Every gate and every KL estimator has exactly one home per language: here, in
csrc/math/token_objective.h and in kernels/_math.py; a test holds the three together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.reference.autograd import recording

METRICS = (
    "count",
    "logprob",
    "entropy",
    "kl",
    "old_kl",
    "ratio",
    "clip_low",
    "clip_high",
    "ratio_min",
    "ratio_max",
)


class Objective(NamedTuple):
    """A token objective in numbers: which gate and KL estimator, and their coefficients."""

    gate: str
    gate_coef: tuple[float, float]
    kl: str
    kl_coef: float
    entropy_coef: float


def reinforce(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor, c0: float, c1: float
) -> Tensor:
    """Returns −A·log π. Paper: Williams 1992, doi 10.1007/BF00992696, eq. 11."""
    return -advantage * logprob


def ppo_clip(logprob: Tensor, log_ratio: Tensor, advantage: Tensor, c0: float, c1: float) -> Tensor:
    """Returns −min(r·A, clip(r, 1 − c0, 1 + c1)·A) with r = exp(log_ratio).

    Paper: arXiv 1707.06347, eq. 7; two widths (clip-higher) as in arXiv 2503.14476, eq. 8.
    """
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - c0, 1 + c1) * advantage)


def kl_k1(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """Returns d = log π − log π_ref, unbiased and of either sign."""
    return logprob - ref_logprob


def kl_k2(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """Returns d²/2, whose gradient is that of the KL divergence on policy."""
    return 0.5 * (logprob - ref_logprob).square()


def kl_k3(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """Returns exp(−d) − 1 + d, unbiased and never negative. Paper: arXiv 2402.03300, eq. 4."""
    difference = logprob - ref_logprob
    return torch.expm1(-difference) + difference


Gate = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
# The position in these tables is the number the native kernels know the formula by.
GATES: dict[str, Gate] = {"reinforce": reinforce, "ppo_clip": ppo_clip}
KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
GATE_INDEX = {name: i for i, name in enumerate(GATES)}
KL_INDEX = {name: i for i, name in enumerate(KL_ESTIMATORS)}


def token_loss(
    logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    objective: Objective,
) -> Tensor:
    """Returns the loss of each token, differentiable in logprob and entropy.

    Without old_logprob the batch is on policy: the ratio is 1 and its gradient that of log π.
    """
    old = logprob.detach() if old_logprob is None else old_logprob
    loss = GATES[objective.gate](logprob, logprob - old, advantage, *objective.gate_coef)
    if ref_logprob is not None:
        loss = loss + objective.kl_coef * KL_ESTIMATORS[objective.kl](logprob, ref_logprob)
    return loss - objective.entropy_coef * entropy


def token_metrics(
    logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    weight: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    objective: Objective,
) -> Tensor:
    """Returns the metrics: sums over rows of non-zero weight, then smallest and largest ratio."""
    counted = weight != 0
    old = logprob if old_logprob is None else old_logprob
    ratio = (logprob - old).exp()
    low, high = objective.gate_coef
    kl = torch.zeros_like(logprob)
    if ref_logprob is not None:
        kl = KL_ESTIMATORS[objective.kl](logprob, ref_logprob)
    sums = [
        torch.ones_like(logprob),
        logprob,
        entropy,
        kl,
        kl_k3(logprob, old),
        ratio,
        ((ratio < 1 - low) & (advantage < 0)).to(logprob.dtype),
        ((ratio > 1 + high) & (advantage > 0)).to(logprob.dtype),
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
    advantage: Tensor,
    weight: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_logprob, grad_entropy) of loss = Σ weight·ℓ.

    Rows of weight 0 are not read.
    """
    counted = weight != 0

    def counted_rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.where(counted, x.detach(), 0.0)

    old_logprob, ref_logprob = counted_rows(old_logprob), counted_rows(ref_logprob)
    logprob, entropy, advantage = (
        torch.where(counted, x.detach(), 0.0) for x in (logprob, entropy, advantage)
    )
    with recording():
        logprob = logprob.requires_grad_()
        entropy = entropy.requires_grad_()
        row_loss = token_loss(logprob, entropy, advantage, old_logprob, ref_logprob, objective)
        loss = torch.where(counted, weight * row_loss, 0.0).sum()
        grad_logprob, grad_entropy = torch.autograd.grad(loss, (logprob, entropy))
    with torch.no_grad():
        metrics = token_metrics(
            logprob, entropy, advantage, weight, old_logprob, ref_logprob, objective
        )
    return loss.detach(), metrics, grad_logprob, grad_entropy
