# SPDX-License-Identifier: Apache-2.0
"""Groups of settings that say how a run is optimized, evaluated and kept."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rlkern.runs.settings.group import Group
from rlkern.runs.settings.types import (
    BelowOne,
    Count,
    Counts,
    Listed,
    NotNegative,
    Once,
    Positive,
    Says,
    Share,
    TrackerNames,
    Whole,
    Words,
)


class Decay(Group):
    """Decay of the learning rate."""

    main: ClassVar[str | None] = "kind"
    kind: Literal["linear", "cosine"] = "linear"
    """Shape of the decay, which ends at the last step."""
    floor: Share = 0.1
    """Fraction of lr that the decay ends at."""


class Optimizer(Group):
    """Optimizer: AdamW and its schedule."""

    main: ClassVar[str | None] = "lr"
    lr: Positive = 1e-5
    """Learning rate; 5e-4 for tiny unless given."""
    warmup: Whole = 0
    """Optimizer steps over which the learning rate rises from zero."""
    decay: Decay | None = None
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay, on matrices only."""
    beta2: BelowOne = 0.999
    """Second beta of AdamW."""
    max_grad_norm: NotNegative = 1.0
    """Gradients are scaled down to this norm; 0 does not clip."""
    train_layers: Whole = 0
    """Train only the last n transformer layers; 0 trains every weight."""


class Lora(Group):
    """LoRA adapters (PEFT), trained in place of the weights."""

    main: ClassVar[str | None] = "rank"
    rank: Count = 8
    """Rank of the adapters."""
    alpha: Positive | None = None
    """Scale of the adapters, times 1 / rank; null takes twice the rank."""
    targets: Words = ("all-linear",)
    """Modules that get an adapter, by name with commas; all-linear is every linear layer but the
    head."""


class Sft(Group):
    """Supervised steps on right answers before the first step."""

    main: ClassVar[str | None] = "steps"
    steps: Count = 600
    """Number of supervised steps."""
    target: NotNegative = 0.15
    """End early at this sampled accuracy on training items; 0 takes all steps."""
    lr: Positive = 2e-3
    """Learning rate of the supervised steps."""
    batch: Count = 64
    """Items of a supervised step."""


class Memory(Group):
    """Memory: what trades time for memory; the result does not depend on it."""

    share_prompts: bool = True
    """Run each prompt once for its whole group, in scoring and in the loss."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of storing them."""
    length_bucket: Count = 1
    """Pad prompts and answers to a multiple of this many tokens."""


class Eval(Group):
    """Evaluation on held-out items."""

    main: ClassVar[str | None] = "every"
    items: Count = 200
    """Held-out items, never trained on."""
    every: Whole = 0
    """Steps between evaluations; 0 evaluates only before and after."""
    modes: Annotated[
        tuple[Literal["sampled", "greedy"], ...],
        Listed,
        Field(min_length=1),
        Once,
        Says("sampled, greedy or both"),
    ] = ("sampled", "greedy")
    """Kinds of held-out accuracy; the first one is eval/accuracy."""
    samples: Count = 1
    """Sampled answers to each held-out item."""
    pass_at: Counts = (1,)
    """Values of k for pass@k of the sampled answers."""
    batch: Count = 256
    """Answers that are evaluated at once."""
    keep_best: bool = True
    """Keep the checkpoint of the best eval/accuracy as best, next to the newest."""


class Output(Group):
    """Output: what is written and shown, and when."""

    main: ClassVar[str | None] = "dir"
    dir: str = "runs"
    """Folder that holds the run directories."""
    log: TrackerNames = ("tensorboard",)
    """Trackers that get what metrics.jsonl gets: tensorboard, trackio, wandb, mlflow; an empty list
    is none. wandb stays offline unless WANDB_MODE says otherwise."""
    log_every: Count = 1
    """Steps between log lines."""
    sample_every: Whole = 0
    """Steps between tables of sample answers; 0 shows none."""
    completions: Whole = 10
    """Write the rollouts of every n-th step, and of the first and the last step, to
    completions.parquet; 0 writes none."""
    save_every: Whole = 50
    """Steps between checkpoints; 0 saves only at the end."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept."""
