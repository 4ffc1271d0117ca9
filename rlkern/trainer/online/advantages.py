# SPDX-License-Identifier: Apache-2.0
"""From an experience to advantages: which function of rlkern a declaration's `advantage` means, and
what it is given. All of it is of the whole batch, so every process finds the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern import advantage as formulas
from rlkern.trainer.config import Config
from rlkern.trainer.online.experience import Experience


@dataclass
class Estimate:
    """What the losses are given of an experience.

    advantage     (B,) or (B, T); 0 for answers that no reward scores
    value_target  (B, T) what the critic should have said, NaN where there is nothing to learn;
                  None where no critic is asked
    """

    advantage: Tensor
    value_target: Tensor | None = None


def estimate(experience: Experience, algorithm: Any, config: Config) -> Estimate:
    """Returns the advantages that an algorithm's declaration asks for; config is resolved."""
    return TABLE[algorithm.advantage](experience, config)


def last_counted(mask: Tensor) -> Tensor:
    """Returns where the last counted token (B, T) of each row is; masks may have holes.

    >>> last_counted(torch.tensor([[True, False, True, False]])).tolist()
    [[False, False, True, False]]
    """
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)


def token_kl(experience: Experience) -> Tensor:
    """Returns log π_old − log π_ref (B, T), 0 where no token counts: k1, as TRL, verl, OpenRLHF."""
    old, ref = experience.old_logprob, experience.ref_logprob
    assert old is not None and ref is not None  # the trainer scores both where the reward has a KL
    return torch.where(experience.rollout.mask, old - ref, 0.0)


def token_reward(experience: Experience) -> Tensor:
    """Returns the reward (B, T) of each token: the answer's at its last counted token, and minus
    reward_kl_coef·(log π_old − log π_ref) at each. Of an unscorable answer the last one is NaN.
    """
    last = last_counted(experience.rollout.mask)
    reward = torch.where(last, experience.reward[:, None], 0.0)
    if experience.reward_kl_coef == 0:
        return reward
    return reward - experience.reward_kl_coef * token_kl(experience)


def sequence_reward(experience: Experience) -> Tensor:
    """Returns the reward (B,) of each answer, minus reward_kl_coef·Σ(log π_old − log π_ref)."""
    if experience.reward_kl_coef == 0:
        return experience.reward
    return experience.reward - experience.reward_kl_coef * token_kl(experience).sum(-1)


def _scorable(experience: Experience) -> Tensor:
    """Returns the counted tokens (B, T) of answers that have a reward."""
    return experience.rollout.mask & ~experience.reward.isnan()[:, None]


def _of_groups(formula: Callable[..., Tensor], experience: Experience, config: Config) -> Estimate:
    return Estimate(formula(sequence_reward(experience), experience.group))


def _length_weighted(experience: Experience, config: Config) -> Estimate:
    length = experience.rollout.mask.sum(-1)
    formula = partial(rlkern.group_advantage, kind="length_weighted", length=length)
    return _of_groups(formula, experience, config)


def _reward(experience: Experience, config: Config) -> Estimate:
    return Estimate(sequence_reward(experience).nan_to_num(nan=0.0))


def _remax(experience: Experience, config: Config) -> Estimate:
    """Returns reward − greedy reward. The greedy answer's own KL is left out, as in verl."""
    assert experience.greedy_reward is not None
    return Estimate(formulas.remax(sequence_reward(experience), experience.greedy_reward))


def _optimal(experience: Experience, config: Config) -> Estimate:
    """Returns R − V*: the difference that ReMax takes too, from another baseline."""
    assert experience.optimal_value is not None
    return Estimate(formulas.remax(sequence_reward(experience), experience.optimal_value))


def _gdpo(experience: Experience, config: Config) -> Estimate:
    """Returns each reward normalized on its own, those of weight 0 left out."""
    columns = experience.scored.by_function.to(experience.reward).T
    weight = columns.new_tensor(config.reward_weights or [1.0] * columns.shape[1])
    used = weight != 0
    found = formulas.gdpo(columns[:, used], experience.group, weight=weight[used])
    return Estimate(found)


def _reinforce_plus_plus(experience: Experience, config: Config) -> Estimate:
    counted = _scorable(experience)
    discount = config.discount
    assert discount is not None
    returns = rlkern.discounted_return(token_reward(experience), counted, discount=discount)
    return Estimate(formulas.reinforce_plus_plus(returns, counted))


def _reinforce_plus_plus_baseline(experience: Experience, config: Config) -> Estimate:
    reward, mask = sequence_reward(experience), experience.rollout.mask
    return Estimate(formulas.reinforce_plus_plus_baseline(reward, experience.group, mask))


def _gae(experience: Experience, config: Config) -> Estimate:
    counted = _scorable(experience)
    discount, gae_lambda, value = config.discount, config.gae_lambda, experience.value
    assert discount is not None and gae_lambda is not None and value is not None
    found = rlkern.gae(
        token_reward(experience),
        value,
        counted,
        discount=discount,
        gae_lambda=gae_lambda,
        whiten=bool(config.whiten_advantage),
    )
    return Estimate(found.advantage, torch.where(counted, found.target, torch.nan))


TABLE: dict[str, Callable[[Experience, Config], Estimate]] = {
    **{name: partial(_of_groups, formula) for name, formula in formulas.ESTIMATORS.items()},
    "length_weighted": _length_weighted,
    "reward": _reward,
    "remax": _remax,
    "optimal": _optimal,
    "gdpo": _gdpo,
    "reinforce_plus_plus": _reinforce_plus_plus,
    "reinforce_plus_plus_baseline": _reinforce_plus_plus_baseline,
    "gae": _gae,
}
