# SPDX-License-Identifier: Apache-2.0
"""Correction of the mismatch between the sampler and the trainer, w = π_old / μ.

The sampler's log-probabilities (rollout_logprob, log μ) differ from the trainer's own of the same
policy (old_logprob): other kernels, other precision, stale weights. Both are constants of a batch,
so a correction is too: made once, used in every epoch, multiplied into the gate's loss by
policy_loss(correction=…) and never into the KL or entropy term (as in TRL). Whatever an answer's
masked tokens hold is not read. Nothing here has a gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlkern.ops import check
from rlkern.ops.rows import sequence_bounds
from rlkern.reference.levels import Sequences

Ratios = Callable[[Tensor, Tensor, Sequences, float, float], Tensor]


def _between(x: Tensor, low: float, high: float) -> Tensor:
    return (x >= low) & (x <= high)


def _truncate(d, counted, sequences, low, high):
    return d.exp().clamp(max=high)


def _mask(d, counted, sequences, low, high):
    w = d.exp()
    return torch.where(_between(w, low, high), w, 0.0)


def _sequence_truncate(d, counted, sequences, low, high):
    return sequences.total(d).exp().clamp(max=high)


def _sequence_mask(d, counted, sequences, low, high):
    w = sequences.total(d).exp()
    return torch.where(_between(w, low, high), w, 0.0)


def _geometric_mask(d, counted, sequences, low, high):
    mean = sequences.total(d) / sequences.total(counted).clamp(min=1)
    return torch.where(_between(mean.exp(), low, high), d.exp(), 0.0)


CORRECTIONS: dict[str, Ratios] = {
    "truncate": _truncate,
    "mask": _mask,
    "sequence_truncate": _sequence_truncate,
    "sequence_mask": _sequence_mask,
    "geometric_mask": _geometric_mask,
}
DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: 0.5 * d.square(),
    "k3": lambda d: torch.expm1(-d) + d,
}


def _checked(op, old_logprob, rollout_logprob, mask, cu_seqlens):
    """Returns (log w with zeros under the mask, which tokens count, their sequences)."""
    check.tensor(op, "old_logprob", old_logprob, check.FLOATS)
    shape = old_logprob.shape
    check.like(op, "rollout_logprob", rollout_logprob, shape, old_logprob, check.FLOATS)
    check.like(op, "mask", mask, shape, old_logprob, (torch.bool,))
    bounds = sequence_bounds(op, cu_seqlens, shape, old_logprob.device)
    if bounds is None and len(shape) != 2:
        raise ValueError(
            f"{op}: old_logprob must be (B, T), or (N,) with cu_seqlens, "
            f"got {check.describe(old_logprob)}"
        )
    check.finite_values(op, "old_logprob", old_logprob, mask)
    check.finite_values(op, "rollout_logprob", rollout_logprob, mask)
    dtype = torch.promote_types(old_logprob.dtype, torch.float32)
    d = old_logprob.detach().to(dtype) - rollout_logprob.detach().to(dtype)
    return torch.where(mask, d, 0.0), mask.to(dtype), Sequences(shape, bounds)


def rollout_correction(
    old_logprob: Tensor,
    rollout_logprob: Tensor,
    mask: Tensor,
    *,
    kind: str = "truncate",
    low: float = 0.0,
    high: float = 2.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns what multiplies the policy loss of each token, 0 where mask is False.

        w_t = exp(log π_old − log μ)        S = Π w_t over the answer        s = S^(1/|o|)
        truncate           min(w_t, high)              TIS; C = high = 2 in verl
        mask               w_t if low ≤ w_t ≤ high     IcePop, arXiv 2510.18855; 0.5 and 5
        sequence_truncate  min(S, high)                verl's rollout_is=sequence
        sequence_mask      S if low ≤ S ≤ high         TRL's default, high = 3
        geometric_mask     w_t if low ≤ s ≤ high       seq-mask-TIS; 0.999 and 1.002
    and 0 where a condition fails.

    Arguments
        old_logprob      (B, T) float  log π_old by the trainer; (N,) with cu_seqlens
        rollout_logprob  (B, T) float  log μ as the sampler reported it
        mask             (B, T) bool   True counts
        kind, low, high  which of the five, and its bounds; low is unused where it does not appear
        cu_seqlens       (S + 1,) bounds of the answers in flat rows
    Returns
        (B, T) float32 (float64 if an input is)
    Raises
        TypeError, ValueError  for a wrong dtype, shape, device or kind
    Gradient
        none

    >>> old, rollout = torch.log(torch.tensor([[0.9, 0.1]])), torch.log(torch.tensor([[0.3, 0.1]]))
    >>> rollout_correction(old, rollout, torch.tensor([[True, True]])).tolist()
    [[2.0, 1.0]]
    """
    op = "rollout_correction"
    if kind not in CORRECTIONS:
        raise ValueError(f"{op}: kind must be one of {', '.join(CORRECTIONS)}, got {kind!r}")
    low, high = check.number(op, "low", low), check.number(op, "high", high)
    d, counted, sequences = _checked(op, old_logprob, rollout_logprob, mask, cu_seqlens)
    return torch.where(mask, CORRECTIONS[kind](d, counted, sequences, low, high), 0.0)


def rollout_rejection(
    old_logprob: Tensor,
    rollout_logprob: Tensor,
    mask: Tensor,
    *,
    estimator: str = "k3",
    over: str = "token",
    low: float = -torch.inf,
    high: float = torch.inf,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns the mask without the tokens or answers whose divergence is out of bounds.

        k1 = d    k2 = d²/2    k3 = exp(−d) − 1 + d        d = log π_old − log μ
    over "token" drops single tokens; "sum" and "mean" over an answer's tokens, and "max", their
    largest, drop whole answers (verl's rollout_rs). Pass the result as the mask of the loss. With
    the reference's log-probs as rollout_logprob and k2 it is KL-Mask.

    Arguments and errors as rollout_correction; returns (B, T) bool.

    >>> old, rollout = torch.zeros(1, 2), torch.tensor([[0.0, 3.0]])
    >>> rollout_rejection(old, rollout, old == 0, estimator="k2", high=1.0).tolist()
    [[True, False]]
    """
    op = "rollout_rejection"
    if estimator not in DIVERGENCES:
        raise ValueError(
            f"{op}: estimator must be one of {', '.join(DIVERGENCES)}, got {estimator!r}"
        )
    if over not in ("token", "sum", "mean", "max"):
        raise ValueError(f"{op}: over must be one of token, sum, mean, max, got {over!r}")
    d, counted, sequences = _checked(op, old_logprob, rollout_logprob, mask, cu_seqlens)
    x = DIVERGENCES[estimator](d)
    if over == "max":
        return mask & (sequences.total((~_between(x, low, high) & mask).to(d.dtype)) == 0)
    if over != "token":
        x = sequences.total(x)
    if over == "mean":
        x = x / sequences.total(counted).clamp(min=1)
    return mask & _between(x, low, high)


def off_policy_sequence_mask(
    old_logprob: Tensor,
    rollout_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    threshold: float = 0.5,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns the mask without the bad answers that the policy has left far behind.

        dropped where A < 0 and (1/|o|)·Σ (log μ − log π_old) > threshold

    Paper: DeepSeek-V3.2, arXiv 2512.02556 (off-policy sequence masking). TRL and slime compare μ
    with the policy being trained; here it is the one of the last refresh.

    Arguments
        advantage  (B, T) float; the rest as rollout_correction
    Returns
        (B, T) bool

    >>> old, rollout = torch.tensor([[-2.0], [-2.0]]), torch.tensor([[-1.0], [-1.0]])
    >>> mask, advantage = torch.tensor([[True], [True]]), torch.tensor([[1.0], [-1.0]])
    >>> off_policy_sequence_mask(old, rollout, advantage, mask).tolist()
    [[True], [False]]
    """
    op = "off_policy_sequence_mask"
    check.like(op, "advantage", advantage, mask.shape, mask, check.FLOATS)
    d, counted, sequences = _checked(op, old_logprob, rollout_logprob, mask, cu_seqlens)
    behind = sequences.total(-d) / sequences.total(counted).clamp(min=1) > threshold
    return mask & ~(behind & (advantage < 0))


def batch_normalized(correction: Tensor, mask: Tensor) -> Tensor:
    """Returns the correction divided by its mean over the counted tokens (verl's option).

    >>> batch_normalized(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])).tolist()
    [[0.5, 1.5]]
    """
    mean = torch.where(mask, correction, 0.0).sum() / mask.sum().clamp(min=1)
    return torch.where(mask, correction / mean, 0.0)
