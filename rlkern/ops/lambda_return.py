# SPDX-License-Identifier: Apache-2.0
"""Returns between one step and Monte Carlo."""

from torch import Tensor

from rlkern.ops._steps import steps
from rlkern.ops.gae import estimates


def lambda_return(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    discount: float | Tensor = 1.0,
    gae_lambda: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """Returns the λ-return of each token, the target of TD(λ) in its forward view.

        G_t = r_t + discount·((1 − λ)·V_{t+1} + λ·G_{t+1}),   after the last token G = V = bootstrap

    λ = 0 is TD(0)'s r_t + discount·V_{t+1}, λ = 1 the Monte Carlo return. G_t − V_t is the
    advantage of gae (arXiv 1506.02438, eq. 16), whose target this is. Sutton and Barto's 2nd
    edition, eq. 12.2, weighs n-step returns to the same end; rlax indexes rewards by t + 1.

    Arguments
        as of gae
    Returns
        (..., T), 0 where mask is False
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none: the result is a constant

    >>> import torch
    >>> reward, value = torch.tensor([[1.0, 1.0]]), torch.tensor([[9.0, 4.0]])
    >>> lambda_return(reward, value, value > 0, discount=0.5, gae_lambda=0.5).tolist()
    [[2.25, 1.0]]
    """
    rows = steps("lambda_return", reward, mask, cu_seqlens)
    rows = rows.with_ends(terminated, truncated, final_value)
    return estimates(rows, value, discount, gae_lambda, bootstrap).target.reshape(rows.shape)
