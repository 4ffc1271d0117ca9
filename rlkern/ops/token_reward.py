# SPDX-License-Identifier: Apache-2.0
"""Places the reward of each answer, and the KL in it, on its tokens."""

import torch
from torch import Tensor

from rlkern.backends.eager.reverse_scan import last_counted_steps
from rlkern.ops import _check as check
from rlkern.ops._rows import of_each_token


def token_reward(
    reward: Tensor,
    mask: Tensor,
    *,
    kl: Tensor | None = None,
    kl_coef: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns the reward of each token: the answer's at its last counted one, less the KL at each.

        r_t = reward·[t is the last counted token] − kl_coef·KL_t

    The KL in the reward of TRL's PPO, verl (use_kl_in_reward) and OpenRLHF, which take k1:
    `token_kl(old_logprob, ref_logprob, mask=mask, estimator="k1")`. OpenRLHF clips the reward to
    ±10 before; TRL's RLOO subtracts the sum of the KL from the answer's reward instead. gae,
    discounted_return and reinforce_plus_plus take the result.

    Arguments
        reward      (B,) float32 or float64; NaN marks an unscorable answer
        mask        (B, T) bool, True counts; (N,) with cu_seqlens
        kl, kl_coef  (B, T) float, such as of token_kl, and its weight: both or neither
        cu_seqlens  (B + 1,) int64 or int32 bounds of the answers in flat rows
    Returns
        (B, T) in the dtype of reward, or (N,); 0 where mask is False; NaN at the last counted token
        of an unscorable answer. An answer without a counted token has its reward nowhere
    Raises
        TypeError, ValueError  for a wrong dtype, shape or device, or kl without kl_coef
    Gradient
        none: the result is a constant

    >>> kl = torch.tensor([[0.5, 0.25, 9.0]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> token_reward(torch.tensor([1.0]), mask, kl=kl, kl_coef=1.0).tolist()
    [[-0.5, 0.75, 0.0]]
    """
    op = "token_reward"
    check.tensor(op, "mask", mask, (torch.bool,))
    bounds = check.sequence_bounds(op, cu_seqlens, mask.shape, mask.device)
    if bounds is None and mask.ndim != 2:
        raise ValueError(
            f"{op}: mask must be (B, T), or (N,) with cu_seqlens, got {check.describe(mask)}"
        )
    answers = mask.shape[:1] if bounds is None else torch.Size([bounds.numel() - 1])
    check.like(op, "reward", reward, answers, mask, (torch.float32, torch.float64))
    if (kl is None) != (kl_coef is None):
        raise ValueError(f"{op}: kl and kl_coef must be given together")
    rows = of_each_token(op, "reward", reward.detach(), mask.shape, bounds)
    placed = torch.where(last_counted_steps(mask, bounds), rows, 0.0)
    if kl is None:
        return placed
    check.like(op, "kl", kl, mask.shape, mask, check.FLOATS)
    check.finite_values(op, "kl", kl, mask)
    coef = check.number(op, "kl_coef", kl_coef)
    return placed - coef * torch.where(mask, kl.detach(), 0.0).to(placed.dtype)
