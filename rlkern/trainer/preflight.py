# SPDX-License-Identifier: Apache-2.0
"""Settings that contradict each other or the algorithm: refused before a model is loaded."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.online.shaping import check_shaping
from rlkern.trainer.settings import resolve

# Advantages that compare an answer with something else than the other answers to its prompt.
ALONE = frozenset("batch_centered gae reward remax optimal reinforce_plus_plus".split())
# Advantages that spread rewards over tokens.
OVER_TOKENS = frozenset(("gae", "reinforce_plus_plus"))


def check_settings(config: Config, algorithm: Any) -> None:
    """Returns nothing; raises one sentence for the first contradiction, with its fix."""
    given = _given(config)
    whole = resolve(config)
    for keys, what, reads in READERS:
        unread = sorted(given & set(keys.split()))
        if unread and not reads(algorithm):
            raise UserError(
                f"{unread[0]} is read by algorithms that {what} alone, not by {algorithm.name}:"
                f" choose one that does (rlkern algorithms), or leave {unread[0]} out"
            )
    for contradiction in CONTRADICTIONS:
        sentence = contradiction(whole, algorithm)
        if sentence:
            raise UserError(sentence)
    # How long an answer may be is known once the task is made; build looks again.
    check_shaping(whole, algorithm, longest=sys.maxsize)


def _given(config: Config) -> set[str]:
    """Returns the keys that somebody set: those that differ from what they would be by themselves.

    A key set to the value that it has anyway is not told apart from one left alone, so that the
    settings a run wrote down mean the same as those it was started with.
    """
    defaults = Config(algorithm=config.algorithm, model=config.model)
    own = resolve(defaults)
    return {
        f.name
        for f in dataclasses.fields(Config)
        if getattr(config, f.name) not in (getattr(own, f.name), getattr(defaults, f.name))
    }


def _online(algorithm: Any) -> bool:
    return algorithm.learns_from == "rollouts"


def _has_value(algorithm: Any) -> bool:
    return "value" in algorithm.needs


def _over_tokens(algorithm: Any) -> bool:
    return getattr(algorithm, "advantage", "") in OVER_TOKENS


def _samples_reference(algorithm: Any) -> bool:
    return "reference_samples" in algorithm.needs


def _judges(algorithm: Any) -> bool:
    return algorithm.learns_from in ("pairs", "judged")


# Keys that nothing would read, which must not be dropped in silence: the keys, when they are read
# in words and as a predicate of the declaration.
READERS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    (
        "critic critic_lr critic_warmup value_coef value_clip gae_lambda whiten_advantage",
        "need a value function",
        _has_value,
    ),
    ("discount", "spread rewards over tokens", _over_tokens),
    (
        "reference_samples optimal_temperature",
        "need answers of the starting model",
        _samples_reference,
    ),
    ("pairs pair_items kind", "learn from preferences", _judges),
    (
        "sampling sampling_rounds duplicate_by rollout rollout_correction correction_low"
        " correction_high overlong_cache overlong_filter reward_kl_coef kl_target kl_horizon"
        " compare",
        "learn from answers of their own",
        _online,
    ),
)


def _one_answer(config: Config, algorithm: Any) -> str | None:
    if config.group_size > 1 or not _online(algorithm) or algorithm.advantage in ALONE:
        return None
    return (
        f"group_size must be at least 2 for algorithm {algorithm.name}, whose advantages compare"
        f" the answers to one prompt, got {config.group_size}"
    )


def _one_answer_of_a_pair(config: Config, algorithm: Any) -> str | None:
    if config.group_size > 1 or not _judges(algorithm) or config.pairs != "sampled":
        return None
    return (
        f"group_size must be at least 2 for pairs sampled, since a pair is two answers to one"
        f" prompt, got {config.group_size}; raise it, or give a file of pairs"
    )


def _one_answer_cannot_differ(config: Config, algorithm: Any) -> str | None:
    if config.group_size > 1 or not _online(algorithm) or config.sampling == "all":
        return None
    return (
        f"sampling {config.sampling} keeps groups whose rewards differ, so group_size must be at"
        f" least 2, got {config.group_size}; raise it, or use sampling all"
    )


def _idle(
    key: str, needs: str, reads: Callable[[Any], bool], fix: str
) -> Callable[[Config, Any], str | None]:
    """Returns the contradiction of a key that is set, and not read by what `needs` is set to."""
    default = getattr(Config(), key)

    def contradiction(config: Config, algorithm: Any) -> str | None:
        shown, other = getattr(config, key), getattr(config, needs)
        if shown == default or reads(other):
            return None
        return f"{key} {shown!r} has no effect with {needs} {other!r}: {fix}, or leave {key} out"

    return contradiction


def _named(value: str) -> bool:
    return value != "none"


def _adapters_or_layers(config: Config, algorithm: Any) -> str | None:
    if not (config.lora_rank and config.train_layers):
        return None
    return (
        f"lora_rank {config.lora_rank} trains adapters alone and train_layers"
        f" {config.train_layers} trains weights: give one of the two"
    )


def _checkpointing_without_cache(config: Config, algorithm: Any) -> str | None:
    if not (config.gradient_checkpointing and config.share_prompts):
        return None
    return (
        "gradient_checkpointing cannot keep the cache through which share_prompts runs each prompt"
        " once: add --share_prompts false"
    )


def _warmup_without_end(config: Config, algorithm: Any) -> str | None:
    if not _has_value(algorithm) or config.critic_warmup < config.steps:
        return None
    return (
        f"critic_warmup must be below steps ({config.steps}), or the policy never learns, got"
        f" {config.critic_warmup}"
    )


def _rewards_and_weights(config: Config, algorithm: Any) -> str | None:
    names = (config.reward or "task").split(",")
    weights = config.reward_weights
    if weights is None or len(weights) == len(names) and any(weights):
        return None
    return (
        f"reward_weights must hold a number for each of {len(names)} rewards, not all 0, got"
        f" {weights}"
    )


def _one_reward_apart(config: Config, algorithm: Any) -> str | None:
    count = len((config.reward or "task").split(","))
    used = sum(weight != 0 for weight in config.reward_weights or [1.0] * count)
    if "several_rewards" not in algorithm.needs or used > 1:
        return None
    return (
        f"algorithm {algorithm.name} normalizes each reward apart, so reward must name at least 2"
        f" that count, with a comma between, got {config.reward or 'task'!r}; add one, or use grpo"
    )


CONTRADICTIONS: tuple[Callable[[Config, Any], str | None], ...] = (
    _one_answer,
    _one_answer_of_a_pair,
    _one_answer_cannot_differ,
    _adapters_or_layers,
    _checkpointing_without_cache,
    _warmup_without_end,
    _rewards_and_weights,
    _one_reward_apart,
    _idle("sampling_rounds", "sampling", "dynamic".__eq__, "use sampling dynamic"),
    _idle("duplicate_by", "sampling", "duplicate".__eq__, "use sampling duplicate"),
    _idle("lora_alpha", "lora_rank", bool, "give lora_rank above 0"),
    _idle("lora_targets", "lora_rank", bool, "give lora_rank above 0"),
    _idle("kl_horizon", "kl_target", bool, "give kl_target above 0"),
    _idle("correction_low", "rollout_correction", _named, "name a rollout_correction"),
    _idle("correction_high", "rollout_correction", _named, "name a rollout_correction"),
    _idle("lr_floor", "lr_decay", _named, "use lr_decay linear or cosine"),
)
