# SPDX-License-Identifier: Apache-2.0
"""The settings that every classic algorithm has."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rlkern.runs.settings.group import Group
from rlkern.runs.settings.types import Copies, Count, NotNegative, Seed, TrackerNames, Whole


class Settings(Group):
    """Settings of `rlkern control`; every key is a YAML key and a flag. Each algorithm adds its
    own."""

    algorithm: str = "ppo"
    """Name of an algorithm; `rlkern control --list` shows them."""
    env: str = "CartPole-v1"
    """Id of a gymnasium environment; module:Id imports the module first."""
    env_options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of gymnasium.make, such as env_options.is_slippery."""
    steps: Count = 100_000
    """Environment steps, those of all copies together."""
    num_envs: Copies = 1
    """Copies of the environment, stepped one after the other in one process."""
    seed: Seed = 0
    """Seed of the weights, the exploration and the episodes."""
    max_seconds: NotNegative = 0.0
    """End the run after this wall time; 0 has no limit."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """cpu, cuda, or auto (cuda if there is a GPU); small networks are faster on the CPU."""
    threads: Whole = 1
    """CPU threads of torch; 0 leaves torch's own choice."""
    name: str | None = None
    """Run directory in output_dir; null makes one from algorithm and environment, numbered if
    taken."""
    output_dir: str = "runs"
    """Where run directories are made."""
    log: TrackerNames = ("tensorboard",)
    """Trackers that get what metrics.jsonl gets: tensorboard, trackio, wandb, mlflow; an empty list
    is none. wandb stays offline unless WANDB_MODE says otherwise."""
    log_every: Count = 1000
    """Environment steps between two lines of metrics.jsonl."""
    eval_every: Whole = 0
    """Environment steps between two evaluations; 0 evaluates after the last only."""
    eval_episodes: Count = 10
    """Episodes of an evaluation, without exploration, in an environment of its own."""
    eval_length: Count = 1000
    """Longest episode of an evaluation, where the environment has no time limit of its own: a
    policy that has not learned may never end one."""
    save_every: Whole = 0
    """Environment steps between two checkpoints; 0 saves after the last, and at Ctrl-C."""

    @property
    def steps_matter(self) -> bool:
        """Whether an early step computes something else if steps is changed, as a schedule does."""
        return False
