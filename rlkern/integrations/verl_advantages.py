# SPDX-License-Identifier: Apache-2.0
"""rlkern's advantages of answers within their group, as advantage estimators of verl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlkern.advantage import ESTIMATORS
from rlkern.integrations.verl_losses import PREFIX

# verl's own estimators of what verl passes to these alone, or has the same.
VERLS = {
    "gae": "gae",
    "gdpo": "gdpo",
    "length_weighted": "opo",
    "reinforce_plus_plus": "reinforce_plus_plus",
    "reinforce_plus_plus_baseline": "reinforce_plus_plus_baseline",
    "remax": "remax",
}
# An answer has one reward and a group is normalized or not by its name: verl's options that say
# otherwise, and what they must be left at.
UNUSED = {"gamma": 1.0, "lam": 1.0}


def reward_itself(reward: Tensor, group: Tensor) -> Tensor:
    """Returns the reward as it is, 0 where it is NaN: the advantage of TOPR.

    >>> reward_itself(torch.tensor([1.0, torch.nan]), torch.tensor([0, 0])).tolist()
    [1.0, 0.0]
    """
    return reward.nan_to_num(nan=0.0)


KINDS: dict[str, Callable[..., Tensor]] = {**ESTIMATORS, "reward": reward_itself}


def _check(name: str, kind: str, config: Any) -> None:
    """Raises ValueError for an option of verl that was set and that this estimator ignores."""
    if config is None:
        return
    unused = {**UNUSED, **({"norm_adv_by_std_in_grpo": True} if "normalized" in kind else {})}
    for option, left in unused.items():
        given = config.get(option)
        if given is not None and given != left:
            raise ValueError(
                f"{name}: algorithm.{option} must be left at {left}, as this estimator does not"
                f" take it, got {given}"
            )


def estimator(kind: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns an advantage of rlkern with the signature of verl's register_adv_est.

    The function returns (advantages, returns), both (B, T): the advantage of an answer, from the
    sum of its token rewards and its group, at each of its tokens, and 0 elsewhere. A group of one
    gets 0, where verl's own estimators leave it its reward.

    Arguments
        kind  a key of rlkern.advantage.ESTIMATORS, or "reward"
    Raises
        ValueError  for another kind

    >>> rewards, uid = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), np.array(["a", "a"])
    >>> estimator("win_rate")(rewards, torch.ones(2, 2), index=uid)[0].tolist()
    [[0.5, 0.5], [-0.5, -0.5]]
    """
    if kind not in KINDS:
        raise ValueError(f"estimator: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    name = PREFIX + kind

    def compute(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        config: Any = None,
        index: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        _check(name, kind, config)
        if index is None:
            raise ValueError(f"{name}: index must be the prompt (uid) of each answer, got None")
        reward = token_level_rewards.detach().float().sum(-1)
        group = torch.from_numpy(np.unique(index, return_inverse=True)[1].astype(np.int64))
        advantage = KINDS[kind](reward, group.to(reward.device))
        spread = torch.where(response_mask.bool(), advantage.unsqueeze(-1), 0.0)
        return spread, spread

    compute.__name__ = compute.__qualname__ = name
    compute.__doc__ = f"Returns (advantages, returns) by rlkern's {kind}."
    return compute
