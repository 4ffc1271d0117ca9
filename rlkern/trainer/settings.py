# SPDX-License-Identifier: Apache-2.0
"""What settings mean: which values can work, and what null stands for."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import rlkern
from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError

# What a key that takes the algorithm's own is where the algorithm says nothing.
UNLESS_DECLARED: dict[str, Any] = {
    "sampling": "all",
    "reward_kl_coef": 0.0,
    "value_coef": 0.1,
    "value_clip": 0.0,
    "discount": 1.0,
    "gae_lambda": 1.0,
    "whiten_advantage": False,
    "epochs": 1,
    "minibatches": 1,
    "kind": "sigmoid",
}

_AT_LEAST_ONE = (
    "steps prompts group_size epochs minibatches micro_batches sft_batch eval_items"
    " eval_batch eval_samples log_every keep_checkpoints length_bucket sampling_rounds"
    " reference_samples pair_items".split()
)
_NOT_NEGATIVE = (
    "threads train_layers lora_rank max_seconds max_new_tokens max_turns top_k correction_low shots"
    " reward_kl_coef kl_target overlong_cache critic_warmup value_coef value_clip"
    " warmup_steps weight_decay max_grad_norm degenerate_limit sft_steps sft_target eval_every"
    " sample_every save_every".split()
)
_POSITIVE = (
    "temperature lr critic_lr sft_lr lora_alpha correction_high kl_horizon optimal_temperature"
).split()
_SHARES = "top_p discount gae_lambda lr_floor".split()


def known_algorithms() -> dict[str, Any]:
    """Returns all that `rlkern train` can run: what learns from its own answers, then the rest."""
    return {**rlkern.algorithms(), **rlkern.offline_algorithms()}


def find_algorithm(name: str) -> Any:
    """Returns the algorithm of this name; raises one sentence when there is none."""
    known = known_algorithms()
    if not isinstance(name, str) or name not in known:
        raise UserError(f"there is no algorithm {name!r}: use one of {', '.join(known)}")
    return known[name]


def validate(config: Config) -> None:
    """Returns nothing; raises one sentence for the first key whose value cannot work."""
    for key in _AT_LEAST_ONE:
        _require(_given(config, key, 1) >= 1, config, key, "at least 1")
    for key in _NOT_NEGATIVE:
        number = _given(config, key, 0)
        _require(0 <= number < float("inf"), config, key, "a finite number, 0 or more")
    for key in _POSITIVE:
        number = _given(config, key, 1)
        _require(0 < number < float("inf"), config, key, "a finite number above 0")
    for key in _SHARES:
        _require(0 <= _given(config, key, 1) <= 1, config, key, "between 0 and 1")
    _require(config.top_p > 0, config, "top_p", "above 0")
    _require(config.temperature >= 1e-4, config, "temperature", "at least 1e-4")
    _require(0 <= config.seed < 2**63, config, "seed", "0 or more and below 2**63")
    finite = all(math.isfinite(weight) for weight in config.reward_weights or ())
    _require(finite, config, "reward_weights", "finite numbers")
    ordered = config.correction_low <= config.correction_high
    _require(ordered, config, "correction_low", f"at most correction_high {config.correction_high}")
    _require(0 <= config.adam_beta2 < 1, config, "adam_beta2", "at least 0 and below 1")
    _require(config.micro_batches <= config.prompts, config, "micro_batches", "at most prompts")
    most = config.prompts // config.micro_batches
    fits = (config.minibatches or 1) <= most
    _require(fits, config, "minibatches", "at most prompts / micro_batches")
    _require(len(config.eval_modes) >= 1, config, "eval_modes", "at least one of sampled, greedy")
    fits = all(1 <= k <= config.eval_samples for k in config.eval_pass_at)
    _require(fits, config, "eval_pass_at", f"from 1 to eval_samples ({config.eval_samples})")
    sampled = config.eval_samples == 1 or "sampled" in config.eval_modes
    _require(sampled, config, "eval_samples", f"1 where eval_modes is {config.eval_modes}")
    if config.name is not None:
        check_name(config.name)


def check_name(name: Any) -> None:
    """Returns nothing; raises one sentence for what is no name of a run's folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise UserError(f"name must be a folder name without slashes, got {name!r}")


def _given(config: Config, key: str, default: float) -> float:
    value = getattr(config, key)
    return default if value is None else value


def _require(holds: bool, config: Config, key: str, expected: str) -> None:
    if not holds:
        raise UserError(f"{key} must be {expected}, got {getattr(config, key)!r}")


def resolve(config: Config) -> Config:
    """Returns the settings with the keys filled in that depend on the model or the algorithm.

    >>> resolve(Config(algorithm="grpo", model="tiny")).epochs
    1
    """
    algorithm = find_algorithm(config.algorithm)
    random_start = config.model == "tiny"
    own: dict[str, Any] = {
        **UNLESS_DECLARED,
        "sampling": getattr(algorithm, "sampling", "all"),
        "lr": 5e-4 if random_start else 1e-5,
        "sft_steps": 600 if random_start else 0,
        **algorithm.settings,
    }
    unset = {key: value for key, value in own.items() if getattr(config, key) is None}
    return dataclasses.replace(config, **unset)


def asked_coefficients(config: Config) -> dict[str, float]:
    """Returns the coefficients that the run sets itself, by name."""
    asked = dict(config.coefficients)
    for key in ("kl_coef", "clip_low", "clip_high", "entropy_coef"):
        value = getattr(config, key)
        if value is not None and key in asked:
            raise UserError(f"{key} is given twice: as {key} and inside coefficients")
        if value is not None:
            asked[key] = value
    return asked
