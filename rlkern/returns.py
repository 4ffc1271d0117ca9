# SPDX-License-Identifier: Apache-2.0
"""Advantages from values: formulas over reverse_scan, with no kernels of their own."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.ops import check, reverse_scan


class Gae(NamedTuple):
    """Advantages, and the returns a value function is fitted to; 0 where mask is False."""

    advantage: Tensor
    target: Tensor


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    discount: float = 1.0,
    gae_lambda: float = 0.95,
) -> Gae:
    """Returns generalised advantage estimates of each token and the value targets.

        δ_t = r_t + discount·V_{t+1} − V_t        A_t = δ_t + discount·gae_lambda·A_{t+1}
        target_t = A_t + V_t

    Paper: arXiv 1506.02438, eq. 16. t + 1 is the next counted token: masked tokens, such as a
    tool's answer inside a dialogue, are stepped over (as in verl; TRL and OpenRLHF instead multiply
    by the mask). The value after the last counted token is 0.

    Arguments
        reward      (B, T) float32 or float64
        value       (B, T) of the same dtype
        mask        (B, T) bool, True counts; anything elsewhere
        discount    γ; 1 for language models
        gae_lambda  λ; 0.95
    Returns
        Gae(advantage, target), each (B, T)
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none: both are constants

    >>> reward, value = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> out = gae(reward, value, torch.tensor([[True, True]]), gae_lambda=1.0)
    >>> out.advantage.tolist(), out.target.tolist()
    ([[0.5, 0.5]], [[1.0, 1.0]])
    """
    op = "gae"
    check.tensor(op, "reward", reward, (torch.float32, torch.float64))
    check.like(op, "value", value, reward.shape, reward, (reward.dtype,))
    check.like(op, "mask", mask, reward.shape, reward, (torch.bool,))
    check.finite_values(op, "reward", reward, mask)
    check.finite_values(op, "value", value, mask)
    discount = check.number(op, "discount", discount)
    gae_lambda = check.number(op, "gae_lambda", gae_lambda)
    with torch.no_grad():
        value = torch.where(mask, value, 0.0)
        carry = torch.where(mask, 0.0, 1.0).to(reward.dtype)
        # nearest_t is the value of the first counted token at or after t.
        nearest = reverse_scan(value, carry)
        following = torch.nn.functional.pad(nearest[..., 1:], (0, 1))
        delta = torch.where(mask, reward + discount * following - value, 0.0)
        # Two Python numbers in torch.where would make float32 of them, whatever the rewards are.
        decay = torch.where(mask, torch.full_like(reward, discount * gae_lambda), 1.0)
        advantage = torch.where(mask, reverse_scan(delta, decay), 0.0)
        return Gae(advantage, torch.where(mask, advantage + value, 0.0))
