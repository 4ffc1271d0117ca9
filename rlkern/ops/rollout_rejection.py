# SPDX-License-Identifier: Apache-2.0
"""Drops tokens or answers on which sampler and trainer disagree too much."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlkern.ops._mismatch import between, log_ratios

DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: 0.5 * d.square(),
    "k3": lambda d: torch.expm1(-d) + d,
}


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
    d, counted, sequences = log_ratios(op, old_logprob, rollout_logprob, mask, cu_seqlens)
    x = DIVERGENCES[estimator](d)
    if over == "max":
        return mask & (sequences.total((~between(x, low, high) & mask).to(d.dtype)) == 0)
    if over != "token":
        x = sequences.total(x)
    if over == "mean":
        x = x / sequences.total(counted).clamp(min=1)
    return mask & between(x, low, high)
