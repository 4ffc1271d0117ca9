# SPDX-License-Identifier: Apache-2.0
"""Estimates of the KL divergence to a reference, token by token."""

import torch
from torch import Tensor

from rlkern.backends.eager.kl import KL_ESTIMATORS, OF_LEVEL
from rlkern.ops import _check as check

_OF_A_RATIO = ("importance_k1", "importance_k3")
# A token has no level, whose ratio the others weigh with.
ESTIMATORS = {name: kl for name, kl in KL_ESTIMATORS.items() if name not in OF_LEVEL}


def _checked_limit(op: str, limit: float | None, estimator: str) -> float | None:
    if limit is None:
        return None
    if estimator in _OF_A_RATIO:
        raise ValueError(f"{op}: limit must be None with estimator {estimator!r}, got {limit}")
    value = check.number(op, "limit", limit)
    if value <= 0:
        raise ValueError(f"{op}: limit must be greater than 0 or None, got {limit}")
    return value


def token_kl(
    logprob: Tensor,
    ref_logprob: Tensor,
    *,
    mask: Tensor | None = None,
    estimator: str = "k3",
    old_logprob: Tensor | None = None,
    limit: float | None = None,
) -> Tensor:
    """Returns an estimate of KL(π‖π_ref) from each token that π drew, 0 where mask is False.

        k1 = d    k2 = d²/2    k3 = exp(−d) − 1 + d    abs = |d|        d = log π − log π_ref
        k1+, k3+: their values with the gradient of k2
        importance_k1 = r·k1    importance_k3 = r·k3                    r = π/π_old

    Equations, papers and who uses which are in rlkern/backends/eager/kl.py; policy_loss computes
    the same inside its kernel. With a limit d is clamped to [−limit, limit] first: 20 in verl and
    NeMo, of k3, whose value they then clamp to ±10, as OpenRLHF clamps that of each estimator.
    TRL clamps neither. verl's ppo_kl is the mean of
    `token_kl(old_logprob, logprob, estimator="k1")`.

    Arguments
        logprob, ref_logprob  (...) float  log π and log π_ref; anything where mask is False
        mask         (...) bool   True counts; all by default
        estimator    one of the eight names
        old_logprob  (...) float  log π_old, which importance_k1 and importance_k3 read; without it
                     π_old is π, and r is 1 with the gradient of log π
        limit        greater than 0; None: no clamp. Not for the estimators that weigh with r
    Returns
        (...) float32 (float64 if logprob or ref_logprob is)
    Raises
        TypeError, ValueError  for a wrong dtype, shape, device, estimator or limit
    Gradient
        to logprob, and 0 where the clamp holds d; the others are constants

    >>> logprob, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.0]])
    >>> token_kl(logprob, ref, estimator="k1").tolist()
    [[0.5, 0.0]]
    """
    op = "token_kl"
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"{op}: estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}"
        )
    limit = _checked_limit(op, limit, estimator)
    check.tensor(op, "logprob", logprob, check.FLOATS)
    named = {"ref_logprob": ref_logprob, "old_logprob": old_logprob}
    for name, x in named.items():
        if x is not None or name == "ref_logprob":
            check.like(op, name, x, logprob.shape, logprob, check.FLOATS)
    if mask is not None:
        check.like(op, "mask", mask, logprob.shape, logprob, (torch.bool,))
    wide = torch.promote_types(torch.promote_types(logprob.dtype, ref_logprob.dtype), torch.float32)

    def ahead_of(constant: Tensor) -> Tensor:
        difference = logprob.to(wide) - constant.detach().to(wide)
        # Selected before any formula: what is masked may be NaN, and 0 times NaN is a gradient.
        return difference if mask is None else torch.where(mask, difference, 0.0)

    d = ahead_of(ref_logprob)
    if limit is not None:
        d = d.clamp(-limit, limit)
    log_ratio = ahead_of(logprob if old_logprob is None else old_logprob)
    return ESTIMATORS[estimator](d, torch.zeros_like(d), log_ratio)
