# SPDX-License-Identifier: Apache-2.0
"""Drops tokens or answers on which sampler and trainer disagree too much."""

import torch
from torch import Tensor

from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.ops import _check as check
from rlkern.ops._mismatch import TWO_OUTCOMES, between, checked

# Of the sampler μ, whose tokens these are: KL(μ‖π_old), not KL(π_old‖μ). The other estimators
# differ from these in their gradients, or weigh with a ratio.
DIVERGENCES = {name: KL_ESTIMATORS[name] for name in ("k1", "k2", "k3")}


def rollout_rejection(
    old_logprob: Tensor,
    rollout_logprob: Tensor,
    mask: Tensor,
    *,
    estimator: str = "k3",
    over: str = "token",
    low: float | None = None,
    high: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns the mask without the tokens or answers whose divergence is out of bounds.

        k1 = −d    k2 = d²/2    k3 = exp(d) − 1 − d        d = log π_old − log μ
        binary_kl = KL(Bernoulli μ ‖ Bernoulli π_old)      total_variation = |π_old − μ|
    The sampler μ drew the tokens, so the first three estimate KL(μ‖π_old); k1 and k3 have the mean
    KL. over "token" drops single tokens; "sum" and "mean" over an answer's tokens, and "max", their
    largest, drop whole answers (verl's rollout_rs). A token of which either log-probability is NaN
    is left out of these, and dropped only with its answer. Pass the result as the mask of the loss.
    With the reference's log-probs as rollout_logprob and k2 it is KL-Mask. binary_kl over "mean" is
    the trust region of FlashREINFORCE (OpenRLHF 0.11.2).

    Arguments and errors as rollout_correction; returns (B, T) bool.

    >>> old, rollout = torch.zeros(1, 2), torch.tensor([[0.0, 3.0]])
    >>> rollout_rejection(old, rollout, old == 0, estimator="k2", high=1.0).tolist()
    [[True, False]]
    """
    op = "rollout_rejection"
    if estimator not in (*DIVERGENCES, *TWO_OUTCOMES):
        expected = ", ".join([*DIVERGENCES, *TWO_OUTCOMES])
        raise ValueError(f"{op}: estimator must be one of {expected}, got {estimator!r}")
    if over not in ("token", "sum", "mean", "max"):
        raise ValueError(f"{op}: over must be one of token, sum, mean, max, got {over!r}")
    bounds = check.bound(op, "low", low, -torch.inf), check.bound(op, "high", high, torch.inf)
    found = checked(op, old_logprob, rollout_logprob, mask, cu_seqlens)
    if estimator in TWO_OUTCOMES:
        x = TWO_OUTCOMES[estimator](found)
    else:
        x = DIVERGENCES[estimator](found.rollout_logprob, found.old_logprob, -found.log_ratio)
    total = found.sequences.total
    if over == "token":
        return mask & (between(x, *bounds) | ~found.known)
    if over == "max":
        return mask & (total((~between(x, *bounds) & found.known).to(x.dtype)) == 0)
    x = total(x) if over == "sum" else found.mean(x)
    return mask & found.answers(between(x, *bounds))
