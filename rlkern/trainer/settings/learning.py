# SPDX-License-Identifier: Apache-2.0
"""Groups of settings that say what is learned from, and by which loss.

Where there are alternatives, each is a class with the keys that it alone has, so a key that does
not apply cannot be written. `main` is the key that a group's name means by itself:
`--groups dynamic` is `--groups.kind dynamic`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlkern.runs.settings.group import Group
from rlkern.runs.settings.types import (
    Bound,
    Count,
    NotNegative,
    Numbers,
    Positive,
    PositiveShare,
    Share,
    Temperature,
    Whole,
    Words,
    ZeroOrOne,
)


class Data(Group):
    """Data: your own file instead of a task, and the form of a question."""

    main: ClassVar[str | None] = "train"
    train: str | None = None
    """File to learn from in place of a task: .jsonl, .json, .parquet or a folder that datasets
    saved, with the columns prompt, answer, messages, completion, text, chosen, rejected, label."""
    eval: str | None = None
    """File of held-out rows; null holds out a part of data.train that the seed chooses."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns that have other names, such as data.columns.prompt question."""
    system: str | None = None
    """System message of every conversation, in place of its own."""
    chat: bool | None = None
    """Whether a prompt that is text becomes a user's message in the model's chat template; null
    does so if its tokenizer has one and data.template is not given."""
    stop: str = ""
    """Text that ends an answer, in addition to the model's own ends."""
    max_prompt: Whole = 0
    """Longest prompt in tokens; 0 takes the model's context less the longest answer."""
    too_long: Literal["drop", "truncate"] = "drop"
    """Leave rows with longer prompts out, or keep the end of these prompts."""
    shots: Whole | None = None
    """Solved examples before each question; null takes the task's own."""
    template: str | None = None
    """Text that ends where the answer starts, with {question} or other fields of the family, or
    with columns of data.train; null takes the task's own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the reasoning-gym family, or arguments of an environment's function, by name."""


class Batch(Group):
    """Batch: what one step learns from."""

    prompts: Count = 16
    """Prompts of a rollout; pairs or answers of a batch of given ones."""
    epochs: Count = 1
    """Passes over each rollout."""
    minibatches: Count = 1
    """Optimizer steps in each pass."""
    micro_batches: Count = 1
    """Pieces that a batch is split into to save memory; the result does not depend on it."""
    skip_silent: bool = True
    """Leave groups whose gradient is exactly 0 out of an optimizer step: equal rewards, and a loss
    without critic, KL and entropy. Metrics of the loss then cover only the other groups."""


class Rollout(Group):
    """Rollout: how answers are sampled, in training and in evaluation."""

    main: ClassVar[str | None] = "engine"
    engine: Literal["model", "vllm"] = "model"
    """model samples with the model's own KV cache, vllm with vLLM (rlkern[vllm]) in the same
    process; evaluation stays with the model."""
    group_size: Count = 8
    """Answers sampled for each prompt."""
    max_new_tokens: Whole = 0
    """Longest answer in tokens; 0 takes the task's own."""
    max_turns: Whole = 0
    """Messages of the model in a task whose environment answers; 0 takes the task's own."""
    temperature: Temperature = 1.0
    """Sampling temperature, which the loss uses too."""
    top_k: Whole = 0
    """Sample among the k likeliest tokens, and let the loss count only these; 0 takes all."""
    top_p: PositiveShare = 1.0
    """Sample among the likeliest tokens of this total probability; 1 takes all."""


class EveryGroup(Group):
    """Groups: train on every group of answers."""

    main: ClassVar[str | None] = "kind"
    kind: Literal["all"] = "all"
    """all trains on every group, dynamic samples until the batch is full of groups whose rewards
    differ, duplicate fills the places of the other groups with copies of these."""


class DynamicGroups(Group):
    """Groups: sample until the batch is full of groups whose rewards differ (DAPO)."""

    main: ClassVar[str | None] = "kind"
    kind: Literal["dynamic"] = "dynamic"
    rounds: Count = 10
    """Rounds of sampling after which dynamic takes the groups it has."""


class DuplicateGroups(Group):
    """Groups: fill the places of groups whose rewards agree with copies of the others (DUPO)."""

    main: ClassVar[str | None] = "kind"
    kind: Literal["duplicate"] = "duplicate"
    by: Literal["copy", "weight"] = "copy"
    """Whether a copy is a row of the batch or a weight; both are the same if a rollout has one
    optimizer step."""


class AdaptiveKl(Group):
    """Steering of reward.kl_coef towards a target divergence."""

    main: ClassVar[str | None] = "target"
    target: Positive
    """Divergence of an answer, in nats, that reward.kl_coef steers to."""
    horizon: Positive = 10_000.0
    """Answers over which reward.kl_coef moves."""


class Reward(Group):
    """Reward: what scores answers, and what is added to the score."""

    main: ClassVar[str | None] = "functions"
    functions: Words = ("task",)
    """Rewards with commas, summed: task (the task's own; of a file, 1 for its answer), math, exact,
    contains, json, regex:PATTERN (without a comma), my_reward.py:function, module:function, or a
    folder that holds a reward model."""
    weights: Numbers | None = None
    """Weight of each reward; a reward of weight 0 is only logged. Null takes ones."""
    kl_coef: NotNegative = 0.0
    """Weight of the KL to the starting model in the reward."""
    adaptive: AdaptiveKl | None = None
    overlong_cache: Whole | None = None
    """Tokens before the longest answer over which the overlong punishment grows; null is a fifth of
    the longest answer where the algorithm punishes, 0 switches it off."""
    degenerate_limit: Whole = 20
    """Stop if each of the first n rollouts gives all groups equal rewards, or if n rollouts in a
    row have no reward at all; 0 never stops."""
    timeout: NotNegative = 0.0
    """Seconds for an answer: if a module:function takes longer, the answer has no reward; 0 has no
    limit."""
    workers: Count = 1
    """Answers that a module:function scores at once. With several workers or a time limit, each
    call is about one answer, in a separate process or, if the function is async, in a coroutine."""


class Advantage(Group):
    """Advantage: how rewards become advantages."""

    discount: Share = 1.0
    """Discount of rewards from token to token."""
    gae_lambda: Share = 1.0
    """Lambda of generalized advantage estimation."""
    whiten: bool = False
    """Give token advantages mean 0 and variance 1."""
    ddof: ZeroOrOne = 1
    """Number that the variance of advantages subtracts from the count: 1 as in TRL and verl, 0 as
    in OpenRLHF's whitening."""
    reference_samples: Count = 8
    """Answers of the starting model to each prompt, for V*."""
    optimal_temperature: Positive = 0.5
    """Beta of V* = beta log mean exp(R / beta)."""


class Critic(Group):
    """Critic: the value function."""

    main: ClassVar[str | None] = "kind"
    kind: Literal["head", "separate"] = "head"
    """head is one more output of the policy, separate a model of its own."""
    lr: Positive | None = None
    """Learning rate of the critic; null takes optimizer.lr."""
    warmup: Whole = 0
    """Rollouts at the start in which only the critic learns."""
    coef: NotNegative = 0.1
    """Weight of the value loss."""
    clip: NotNegative = 0.0
    """Half-width of the value clip; 0 does not clip."""


class BoundedCorrection(Group):
    """Correction of the mismatch between sampler and trainer: ratios have two bounds."""

    main: ClassVar[str | None] = "kind"
    kind: Literal["truncate", "mask", "sequence_mask", "geometric_mask"] = "truncate"
    """Kind of rlkern.rollout_correction: truncate holds a ratio at the bounds, a mask counts what
    is outside as 0."""
    low: NotNegative = 0.0
    """Lower bound of the ratio."""
    high: Bound = 2.0
    """Upper bound of the ratio, or of the divergence; inf is none."""


class CappedCorrection(Group):
    """Correction of the mismatch between sampler and trainer: the ratio of an answer is capped."""

    main: ClassVar[str | None] = "kind"
    kind: Literal["sequence_truncate"]
    high: Bound = 2.0


class DivergenceCorrection(Group):
    """Correction of the mismatch between sampler and trainer: tokens too far away count as 0."""

    main: ClassVar[str | None] = "kind"
    kind: Literal["binary_kl_mask", "total_variation_mask"]
    high: Positive


class Pairs(Group):
    """Pairs: where preferences come from."""

    main: ClassVar[str | None] = "source"
    source: str = "sampled"
    """sampled (answers of the starting model, sorted by the reward), data (those of data.train),
    facts (true and false statements of TextArena) or a .jsonl file with prompt, chosen and
    rejected as texts that no template changes."""
    items: Count = 512
    """Training prompts that pairs are sampled for."""


class Loss(Group):
    """Loss: what is computed from scores, and how."""

    main: ClassVar[str | None] = "path"
    path: Literal["linear", "fused", "eager"] = "linear"
    """linear (from hidden states, the logits never stored), fused (gradient written over the logits
    in a single pass) or eager (PyTorch)."""
    compare: Literal["eager"] | None = None
    """eager also computes the eager loss on every batch and reports the difference."""
    kind: str = "sigmoid"
    """Kind of rlkern.preference_loss."""
    overlong_filter: bool = False
    """Leave answers that were cut off out of the loss."""
    entropy_over: Literal["loss", "tokens"] = "loss"
    """What the entropy term is a mean over: loss weighs its tokens as the loss does, tokens weighs
    all of them alike (TRL)."""
    nll_coef: NotNegative = 0.0
    """Weight of the negative log-likelihood of right answers, whose reward is 1 or more; a mean
    over their tokens (VAPO)."""


Groups = Annotated[EveryGroup | DynamicGroups | DuplicateGroups, Field(discriminator="kind")]
Correction = Annotated[
    BoundedCorrection | CappedCorrection | DivergenceCorrection, Field(discriminator="kind")
]
