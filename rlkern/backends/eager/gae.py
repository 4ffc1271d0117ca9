# SPDX-License-Identifier: Apache-2.0
"""Eager definition of generalised advantage estimation: two reverse scans."""

import torch
from torch import Tensor

from rlkern.backends.eager.reverse_scan import at_steps, following, reverse_scan
from rlkern.backends.eager.whiten import whiten


def td_error(reward: Tensor, discount: float | Tensor, following: Tensor, value: Tensor) -> Tensor:
    """Returns δ_t = r_t + discount·V_{t+1} − V_t."""
    return reward + discount * following - value


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    ddof: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns (advantage, target) of (B, T) rows or of packed (N,) steps.

    coefficients are discount and gae_lambda in float64: (2,) on the CPU, or (2, S) where the rows
    are. bootstrap (S,) is the value after the last counted step. With a ddof the advantage is
    whitened, never the target.
    """
    steps = reward.shape[-1]
    discount, decay = coefficients[0], coefficients[0] * coefficients[1]
    if coefficients.ndim == 2:
        discount, decay = (at_steps(x, steps, cu_seqlens) for x in (discount, decay))
    discount, decay = discount.to(reward), decay.to(reward)
    after = reward.new_zeros(()) if bootstrap is None else at_steps(bootstrap, steps, cu_seqlens)
    value = torch.where(mask, value, 0.0)
    delta = td_error(reward, discount, following(value, mask, after, cu_seqlens), value)
    advantage = reverse_scan(
        torch.where(mask, delta, 0.0), torch.where(mask, decay, 1.0), cu_seqlens
    )
    advantage = torch.where(mask, advantage, 0.0)
    target = torch.where(mask, advantage + value, 0.0)
    return (advantage if ddof is None else whiten(advantage, mask, ddof=ddof)), target
