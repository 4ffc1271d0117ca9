# SPDX-License-Identifier: Apache-2.0
"""What becomes of a reward before advantages: punishment of long answers, the KL's coefficient and
what is reported of both; and which answers the loss leaves out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, isin

import rlkern
from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.online.advantages import last_counted, sequence_reward, token_kl
from rlkern.trainer.online.experience import Experience
from rlkern.trainer.rollout.data import Rollout


def check_shaping(config: Config, algorithm: Any, *, longest: int) -> None:
    """Returns nothing; raises one sentence for settings of a resolved config that contradict.

    longest is the most tokens of its own that an answer may have.
    """
    name, coef = algorithm.name, config.reward_kl_coef or 0.0
    terms = getattr(algorithm, "reward_terms", ())
    if coef > 0 and "kl" not in terms:
        raise UserError(
            f"reward_kl_coef must be 0 for algorithm {name}, which has no KL in its reward,"
            f" got {coef:g}; kl_coef weighs a KL in its loss"
        )
    if config.kl_target > 0 and coef == 0:
        raise UserError(
            f"kl_target {config.kl_target:g} steers reward_kl_coef, which must be above 0, got 0"
        )
    answers, most = config.prompts * config.group_size, config.kl_horizon / rlkern.AdaptiveKl.clip
    if config.kl_target > 0 and answers > most:
        raise UserError(
            f"kl_horizon must be at least {answers * rlkern.AdaptiveKl.clip:g} for rollouts of"
            f" {answers} answers, got {config.kl_horizon:g}"
        )
    cache = overlong_cache(config, algorithm, longest)
    if cache > longest:
        raise UserError(
            f"overlong_cache must be at most the tokens of the longest answer ({longest}),"
            f" got {cache}; lower it, or raise max_new_tokens"
        )
    if cache and "several_rewards" in getattr(algorithm, "needs", ()):
        raise UserError(
            f"overlong_cache must be 0 for algorithm {name}, which compares each reward function on"
            f" its own, got {cache}; punish long answers in a reward function"
        )


def overlong_cache(config: Config, algorithm: Any, longest: int) -> int:
    """Returns over how many tokens the punishment of long answers grows; 0 punishes none.

    Where neither config nor declaration asks for it there is none, nor where the longest answer
    has fewer than five tokens: a fifth of them is less than one.
    """
    if config.overlong_cache is not None:
        return config.overlong_cache
    asked = "overlong" in getattr(algorithm, "reward_terms", ())
    return longest // 5 if asked else 0


def shaped_reward(reward: Tensor, rollout: Rollout, *, cache: int, longest: int) -> Tensor:
    """Returns the reward (B,) with the punishment of long answers added; NaN stays NaN."""
    if cache == 0:
        return reward
    length = rollout.mask.sum(-1)
    return reward + rlkern.sampling.overlong_penalty(length, max_length=longest, cache=cache).to(
        reward
    )


def finished(rollout: Rollout, stop: Tensor) -> Tensor:
    """Returns which answers (B,) ended by themselves: with one of the stop tokens."""
    return (isin(rollout.token, stop) & last_counted(rollout.mask)).any(-1)


def trained_mask(rollout: Rollout, stop: Tensor, config: Config) -> Tensor:
    """Returns the tokens (B, T) that the losses count: with overlong_filter, those of answers that
    were not cut off. Advantages are still of all answers, so that a cut-off one's reward keeps its
    place in its group.
    """
    if not config.overlong_filter:
        return rollout.mask
    return rlkern.sampling.overlong_filter(rollout.mask, finished(rollout, stop))


def make_controller(config: Config) -> rlkern.FixedKl | rlkern.AdaptiveKl:
    """Returns what sets the weight of the KL in the reward; config is resolved."""
    coef = config.reward_kl_coef or 0.0
    if config.kl_target == 0:
        return rlkern.FixedKl(coef)
    return rlkern.AdaptiveKl(coef, target=config.kl_target, horizon=config.kl_horizon)


def mean_kl(experience: Experience) -> float:
    """Returns the mean over answers of Σ(log π_old − log π_ref): what a controller follows."""
    return token_kl(experience).sum(-1).mean().item()


def objective_metrics(experience: Experience) -> dict[str, float]:
    """Returns what the reward is made of, by TRL's names; nothing where it holds no KL.

    kl and entropy are means over answers of sums over tokens, the entropy estimated by −log π_old.
    scores is the reward without its KL, rlhf_reward with it; unscorable answers count in neither.
    """
    if experience.reward_kl_coef == 0 or experience.old_logprob is None:
        return {}
    kl, logprob = token_kl(experience).sum(-1), experience.old_logprob
    surprise = logprob.where(experience.rollout.mask, 0.0).sum(-1).neg()
    means = {
        "kl": kl,
        "entropy": surprise,
        "non_score_reward": -experience.reward_kl_coef * kl,
        "rlhf_reward": sequence_reward(experience),
        "scores": experience.reward,
    }
    values = {f"objective/{name}": x.nanmean().nan_to_num().item() for name, x in means.items()}
    return {**values, "objective/kl_coef": experience.reward_kl_coef}
