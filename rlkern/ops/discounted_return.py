# SPDX-License-Identifier: Apache-2.0
"""Discounted sums of rewards, to the end."""

from torch import Tensor

from rlkern.ops._steps import steps


def discounted_return(
    reward: Tensor,
    mask: Tensor,
    *,
    discount: float | Tensor = 1.0,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """Returns the discounted sum of the rewards from each token on.

        G_t = r_t + discount·G_{t+1},   after the last counted token G = bootstrap

    The return of REINFORCE. Masked tokens are stepped over and discount nothing, as in verl since
    its pull request 7300 (before, a tool's answer cut the return off). In OpenRLHF they discount.

    Arguments
        reward      (..., T) float32 or float64; packed sequences are (N,)
        mask        of the same shape, bool, True counts; anything elsewhere
        discount    γ, a number or one per sequence
        bootstrap   one per sequence, in the dtype of the rewards; None: all episodes terminated
        cu_seqlens  (S + 1,) int64 or int32: where each packed sequence begins, and the last ends
        terminated, truncated, final_value  ends of episodes inside a sequence, as of gae
    Returns
        (..., T), 0 where mask is False
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none: the result is a constant; reverse_scan is differentiable

    >>> import torch
    >>> reward, mask = torch.tensor([[1.0, 9.0, 4.0]]), torch.tensor([[True, False, True]])
    >>> discounted_return(reward, mask, discount=0.5).tolist()
    [[3.0, 0.0, 4.0]]
    """
    rows = steps("discounted_return", reward, mask, cu_seqlens)
    rows = rows.with_ends(terminated, truncated, final_value)
    gamma = rows.coefficient("discount", discount)
    return rows.returns(gamma, bootstrap).reshape(rows.shape)
