# SPDX-License-Identifier: Apache-2.0
"""What shapes a step beside its rewards: punishment of long answers, which answers the loss leaves
out, the correction of the sampler's mismatch, and the coefficient of the KL in the reward.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

import rlkern
from rlkern.runs.errors import UserError
from rlkern.trainer.online.advantages import Rewarded
from rlkern.trainer.rows import Rows, finished
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.learning import BoundedCorrection


def check_overlong(settings: Settings, longest: int) -> None:
    """Raises UserError if answers of at most `longest` tokens cannot be punished as asked."""
    cache = overlong_cache(settings, longest)
    if cache > longest:
        raise UserError(
            f"reward.overlong_cache must be at most the tokens of the longest answer ({longest}),"
            f" got {cache}; lower it, or raise rollout.max_new_tokens"
        )


def overlong_cache(settings: Settings, longest: int) -> int:
    """Returns over how many tokens the punishment of long answers grows; 0 punishes none.

    If neither settings nor declaration ask for it there is none, nor if the longest answer has
    fewer than five tokens: a fifth of them is less than one.
    """
    if settings.reward.overlong_cache is not None:
        return settings.reward.overlong_cache
    return longest // 5 if "overlong" in settings.declared.reward_terms else 0


def shaped(rows: Rows, settings: Settings, longest: int) -> Rows:
    """Returns the rows with punishments of long answers in their reward; NaN stays NaN."""
    assert rows.reward is not None
    reward, cache = rows.reward, overlong_cache(settings, longest)
    if cache:
        length = rows.mask.sum(-1)
        penalty = rlkern.sampling.overlong_penalty(length, max_length=longest, cache=cache)
        reward = reward + penalty.to(reward)
    return dataclasses.replace(rows, shaped_reward=reward)


def trained_mask(rows: Rows, stop: Tensor, settings: Settings) -> Tensor:
    """Returns the tokens (B, T) that the losses count: with loss.overlong_filter, those of answers
    that were not cut off. Advantages are still of all answers, so that the reward of a cut-off one
    keeps its place in its group.
    """
    if not settings.loss.overlong_filter:
        return rows.mask
    return rlkern.sampling.overlong_filter(rows.mask, finished(rows, stop))


def right_mask(rows: Rows) -> Tensor:
    """Returns the counted tokens (B, T) of right answers, whose reward is 1 or more before
    punishments of length."""
    assert rows.reward is not None
    return rows.mask & (rows.reward >= 1)[:, None]


def correction(settings: Settings, rows: Rows) -> Tensor | None:
    """Returns the factor (B, T) of the policy loss of each token; None if there is none."""
    asked = settings.correction
    if asked is None or rows.old_logprob is None:
        return None
    return rlkern.rollout_correction(
        rows.old_logprob,
        rows.rollout_logprob,
        rows.mask,
        kind=asked.kind,
        low=asked.low if isinstance(asked, BoundedCorrection) else 0.0,
        high=asked.high,
    )


def mismatch_metrics(rows: Rows, factor: Tensor | None = None) -> dict[str, float]:
    """Returns |log π_old − log μ| over the counted tokens and the factors of the correction, if
    there is one, by the names of TRL, rlkern.off_policy_metrics by those of verl, and how many
    tokens have no difference because one of the two is NaN; nothing if the trainer did not score
    the rows.
    """
    if rows.old_logprob is None or not rows.mask.any():
        return {}
    difference = (rows.old_logprob - rows.rollout_logprob)[rows.mask].abs()
    known = difference[~difference.isnan()]
    values = {"sampling/unknown_logprobs": float(difference.numel() - known.numel())}
    if known.numel():
        values["sampling/sampling_logp_difference/mean"] = known.mean().item()
        values["sampling/sampling_logp_difference/max"] = known.max().item()
        distance = rlkern.off_policy_metrics(rows.old_logprob, rows.rollout_logprob, rows.mask)
        numbers = torch.stack(list(distance.values())).tolist()
        values.update({f"rollout_corr/{k}": x for k, x in zip(distance, numbers, strict=True)})
    if factor is not None:
        counted = factor[rows.mask]
        for name, reduce in (("min", torch.min), ("mean", torch.mean), ("max", torch.max)):
            values[f"sampling/importance_sampling_ratio/{name}"] = reduce(counted).item()
    return values


def make_controller(settings: Settings, coef: float) -> rlkern.FixedKl | rlkern.AdaptiveKl:
    """Returns what sets the weight of the KL in the reward, from its present value on."""
    asked = settings.reward.adaptive
    if asked is None:
        return rlkern.FixedKl(coef)
    found = rlkern.AdaptiveKl(settings.reward.kl_coef, target=asked.target, horizon=asked.horizon)
    found.load_state_dict({"coef": coef})
    return found


def mean_kl(given: Rewarded) -> float:
    """Returns the mean over answers of Σ(log π_old − log π_ref), which a controller follows."""
    return given.token_kl().sum(-1).mean().item()


def objective_metrics(given: Rewarded) -> dict[str, float]:
    """Returns what the reward is made of, by TRL's names; nothing if it holds no KL.

    kl and entropy are means over answers of sums over tokens, the entropy estimated by −log π_old.
    scores is the reward without its KL, rlhf_reward with it; unscorable answers count in neither.
    """
    logprob = given.rows.old_logprob
    if given.kl_coef == 0 or logprob is None:
        return {}
    kl = given.token_kl().sum(-1)
    means = {
        "kl": kl,
        "entropy": logprob.where(given.rows.mask, 0.0).sum(-1).neg(),
        "non_score_reward": -given.kl_coef * kl,
        "rlhf_reward": given.sequence_reward(),
        "scores": given.reward,
    }
    values = {f"objective/{name}": x.nanmean().nan_to_num().item() for name, x in means.items()}
    return {**values, "objective/kl_coef": given.kl_coef}
