# SPDX-License-Identifier: Apache-2.0
"""From rewards to advantages: which function of rlkern a declaration's `advantage` means, and what
it is given. All of it is of the whole batch, so every process finds the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import rlkern
from rlkern import advantage as formulas
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.reads import DEVIATING


@dataclasses.dataclass(frozen=True)
class Rewarded:
    """Rows with all that an advantage may read, and the weight of the KL in their reward."""

    rows: Rows
    kl_coef: float
    settings: Settings

    @property
    def reward(self) -> Tensor:
        """The reward (B,) of each answer, with punishments of length, NaN if it has none."""
        assert self.rows.shaped_reward is not None
        return self.rows.shaped_reward

    @property
    def counted(self) -> Tensor:
        """The counted tokens (B, T) of answers that have a reward."""
        return self.rows.mask & ~self.reward.isnan()[:, None]

    def token_kl(self) -> Tensor:
        """Returns log π_old − log π_ref (B, T), 0 where no token counts: k1 of KL(π_old‖π_ref) from
        tokens that π_old drew, as TRL, verl and OpenRLHF have it in the reward."""
        old, ref = self.rows.old_logprob, self.rows.ref_logprob
        assert old is not None and ref is not None  # scored because the reward has a KL
        return rlkern.token_kl(old, ref, mask=self.rows.mask, estimator="k1")

    def token_reward(self) -> Tensor:
        """Returns the reward (B, T) of each token: the answer's at its last counted token, and
        minus reward.kl_coef·(log π_old − log π_ref) at each. The last is NaN if the answer has
        no reward."""
        if not self.kl_coef:
            return rlkern.token_reward(self.reward, self.rows.mask)
        kl, coef = self.token_kl(), self.kl_coef
        return rlkern.token_reward(self.reward, self.rows.mask, kl=kl, kl_coef=coef)

    def sequence_reward(self) -> Tensor:
        """Returns the reward (B,) of each answer, minus reward.kl_coef·Σ(log π_old − log π_ref)."""
        return self.reward - self.kl_coef * self.token_kl().sum(-1) if self.kl_coef else self.reward


Estimate = tuple[Tensor, Tensor | None]  # advantage (B,) or (B, T), and value_target (B, T)


def with_advantage(given: Rewarded) -> Rows:
    """Returns the rows with the advantages that the algorithm declares, and with the targets of the
    critic if there is one."""
    advantage, target = TABLE[given.settings.declared.advantage](given)
    return dataclasses.replace(given.rows, advantage=advantage, value_target=target)


def _of_groups(formula: Callable[..., Tensor], given: Rewarded) -> Estimate:
    return formula(given.sequence_reward(), given.rows.group), None


def _deviating(formula: Callable[..., Tensor], given: Rewarded) -> Estimate:
    """Returns rewards less their mean, divided by a deviation."""
    return _of_groups(partial(formula, ddof=given.settings.advantage.ddof), given)


def _length_weighted(given: Rewarded) -> Estimate:
    length = given.rows.mask.sum(-1)
    return _of_groups(partial(rlkern.group_advantage, kind="length_weighted", length=length), given)


def _reward(given: Rewarded) -> Estimate:
    return given.sequence_reward().nan_to_num(nan=0.0), None


def _teacher(given: Rewarded) -> Estimate:
    """Returns log π_teacher − log π_old of each token; no reward is looked at."""
    old, teacher = given.rows.old_logprob, given.rows.teacher_logprob
    assert old is not None and teacher is not None  # scored because there is a teacher
    return -rlkern.token_kl(old, teacher, mask=given.rows.mask, estimator="k1"), None


def _beyond_baseline(given: Rewarded) -> Estimate:
    """Returns reward − baseline: of a greedy answer, whose own KL is left out as in verl, or V*."""
    assert given.rows.baseline is not None
    return formulas.remax(given.sequence_reward(), given.rows.baseline), None


def _gdpo(given: Rewarded) -> Estimate:
    """Returns each reward normalized separately; those of weight 0 are left out."""
    rewards = given.rows.rewards
    assert rewards is not None
    weight = rewards.new_tensor(given.settings.reward.weights or [1.0] * rewards.shape[1])
    used = weight != 0
    ddof = given.settings.advantage.ddof
    return formulas.gdpo(rewards[:, used], given.rows.group, weight=weight[used], ddof=ddof), None


def _reinforce_plus_plus(given: Rewarded) -> Estimate:
    asked = given.settings.advantage
    returns = rlkern.discounted_return(given.token_reward(), given.counted, discount=asked.discount)
    return formulas.reinforce_plus_plus(returns, given.counted, ddof=asked.ddof), None


def _reinforce_plus_plus_baseline(given: Rewarded) -> Estimate:
    reward, rows, ddof = given.sequence_reward(), given.rows, given.settings.advantage.ddof
    return formulas.reinforce_plus_plus_baseline(reward, rows.group, rows.mask, ddof=ddof), None


def _gae(given: Rewarded) -> Estimate:
    asked, value = given.settings.advantage, given.rows.value
    assert value is not None
    found = rlkern.gae(
        given.token_reward(),
        value,
        given.counted,
        discount=asked.discount,
        gae_lambda=asked.gae_lambda,
        whiten=asked.whiten,
        ddof=asked.ddof,
    )
    return found.advantage, torch.where(given.counted, found.target, torch.nan)


TABLE: dict[str, Callable[[Rewarded], Estimate]] = {
    **{
        name: partial(_deviating if name in DEVIATING else _of_groups, formula)
        for name, formula in formulas.ESTIMATORS.items()
    },
    "length_weighted": _length_weighted,
    "reward": _reward,
    "teacher": _teacher,
    "remax": _beyond_baseline,
    "optimal": _beyond_baseline,
    "gdpo": _gdpo,
    "reinforce_plus_plus": _reinforce_plus_plus,
    "reinforce_plus_plus_baseline": _reinforce_plus_plus_baseline,
    "gae": _gae,
}
