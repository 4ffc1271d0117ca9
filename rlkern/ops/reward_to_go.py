# SPDX-License-Identifier: Apache-2.0
"""Sums of rewards, to the end."""

from torch import Tensor

from rlkern.ops._steps import steps


def reward_to_go(
    reward: Tensor,
    mask: Tensor,
    *,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """Returns the sum of the rewards from each token on: discounted_return with discount 1.

    The return of REINFORCE++ (arXiv 2501.03262), which subtracts the KL penalty in the reward
    before and whitens afterwards.

    Arguments and Returns
        as of discounted_return

    >>> import torch
    >>> reward_to_go(torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool)).tolist()
    [[6.0, 5.0, 3.0]]
    """
    rows = steps("reward_to_go", reward, mask, cu_seqlens)
    rows = rows.with_ends(terminated, truncated, final_value)
    one = rows.reward.new_ones(())
    return rows.returns(one, bootstrap).reshape(rows.shape)
