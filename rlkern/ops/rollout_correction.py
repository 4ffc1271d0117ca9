# SPDX-License-Identifier: Apache-2.0
"""The factor of each token's loss that corrects for the sampler, w = π_old / μ."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlkern.ops import _check as check
from rlkern.ops._mismatch import TWO_OUTCOMES, Mismatch, between, checked

Ratios = Callable[[Mismatch, float, float], Tensor]


def _truncate(m: Mismatch, low: float, high: float) -> Tensor:
    return torch.where(m.known, m.log_ratio.exp().clamp(low, high), 1.0)


def _mask(m: Mismatch, low: float, high: float) -> Tensor:
    w = m.log_ratio.exp()
    return torch.where(m.known & ~between(w, low, high), 0.0, w)


def _sequence_truncate(m: Mismatch, low: float, high: float) -> Tensor:
    return torch.where(m.known, m.sequences.total(m.log_ratio).exp().clamp(max=high), 1.0)


def _sequence_mask(m: Mismatch, low: float, high: float) -> Tensor:
    product = m.sequences.total(m.log_ratio).exp()
    w = torch.where(m.known, product, 1.0)
    return torch.where(m.answers(between(product, low, high)), w, 0.0)


def _geometric_mask(m: Mismatch, low: float, high: float) -> Tensor:
    d = m.log_ratio
    return torch.where(m.answers(between(m.mean(d).exp(), low, high)), d.exp(), 0.0)


def _near(divergence: str) -> Ratios:
    def ratios(m: Mismatch, low: float, high: float) -> Tensor:
        inside = TWO_OUTCOMES[divergence](m) <= high
        return torch.where(inside, m.log_ratio.exp(), 0.0)

    return ratios


CORRECTIONS: dict[str, Ratios] = {
    "truncate": _truncate,
    "mask": _mask,
    "sequence_truncate": _sequence_truncate,
    "sequence_mask": _sequence_mask,
    "geometric_mask": _geometric_mask,
    "binary_kl_mask": _near("binary_kl"),
    "total_variation_mask": _near("total_variation"),
}


def rollout_correction(
    old_logprob: Tensor,
    rollout_logprob: Tensor,
    mask: Tensor,
    *,
    kind: str = "truncate",
    low: float = 0.0,
    high: float | None = 2.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns what multiplies the policy loss of each token, 0 where mask is False.

        w_t = exp(log π_old − log μ)        S = Π w_t over the answer        s = S^(1/|o|)
        truncate           w_t clamped to [low, high]  TIS; C = high = 2 in verl, whose low is 0;
                                                       OpenRLHF has both, 0.5 and 5
        mask               w_t if low ≤ w_t ≤ high     IcePop, arXiv 2510.18855; 0.5 and 5
        sequence_truncate  min(S, high)                verl's rollout_is=sequence
        sequence_mask      S if low ≤ S ≤ high         TRL's default, high = 3
        geometric_mask     w_t if low ≤ s ≤ high       seq-mask-TIS; 0.999 and 1.002
        binary_kl_mask     w_t if D_t ≤ high           D of μ and π_old as Bernoulli variables, this
                                                       token or another; OpenRLHF 0.11.2
        total_variation_mask  w_t if |π_old − μ| ≤ high   OpenRLHF 0.11.2; 0.1 in prime-rl's ipo
    and 0 where a condition fails. A token of which either log-probability is NaN gets no
    correction: its factor is 1, 0 if its answer is dropped, and S, s and |o| leave it out.

    Arguments
        old_logprob      (B, T) float  log π_old by the trainer; (N,) with cu_seqlens
        rollout_logprob  (B, T) float  log μ as the sampler reported it, NaN where it did not
        mask             (B, T) bool   True counts
        kind, low, high  which of the seven, and its bounds (None: no bound); low is unused where it
                         does not appear. high is 2 by default, a bound of ratios: give the two
                         masks of a divergence their own
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
    bounds = check.bound(op, "low", low, 0.0), check.bound(op, "high", high, torch.inf)
    found = checked(op, old_logprob, rollout_logprob, mask, cu_seqlens)
    return torch.where(mask, CORRECTIONS[kind](found, *bounds), 0.0)
