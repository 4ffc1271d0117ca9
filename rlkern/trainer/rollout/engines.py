# SPDX-License-Identifier: Apache-2.0
"""Who samples a rollout: the policy with its own KV cache, or an inference engine beside it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout import sampler
from rlkern.trainer.rollout.data import Prompts, Rollout, Sampling


class Engine(Protocol):
    """Samples completions of a policy; `refresh` takes over the weights that were trained."""

    policy: Policy

    def refresh(self) -> None:
        """Take the policy's weights as they are now; before each rollout."""

    def sample(
        self, prompts: Prompts, sampling: Sampling, *, group_size: int, uniform: Tensor | None
    ) -> Rollout:
        """Returns group_size completions of each prompt; the same for the same numbers."""


@dataclass
class ModelEngine:
    """The policy itself."""

    policy: Policy

    def refresh(self) -> None:
        """Do nothing: the weights are the policy's own."""

    def sample(
        self, prompts: Prompts, sampling: Sampling, *, group_size: int, uniform: Tensor | None
    ) -> Rollout:
        """Returns group_size completions of each prompt."""
        return sampler.sample(
            self.policy, prompts, sampling, group_size=group_size, uniform=uniform
        )


def _vllm(config: Config, policy: Policy) -> Engine:
    from rlkern.trainer.rollout.vllm_engine import VllmEngine

    return VllmEngine(config, policy)


def _check_vllm(config: Config) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "rollout vllm needs the package vllm, which is not installed: install rlkern[vllm],"
            " or use --rollout model"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"rollout vllm serves a run of one process, got {os.environ['WORLD_SIZE']}; use"
            " --rollout model"
        )
    if config.lora_rank:
        raise UserError(
            f"rollout vllm takes whole weights, got lora_rank {config.lora_rank}; use"
            " --rollout model or --lora_rank 0"
        )
    if config.top_p < 1 and not config.top_k:
        # vLLM reports as many log-probabilities as it is asked for, never "all that top-p left".
        raise UserError(
            f"rollout vllm reports what top_p {config.top_p} left only beside a top_k; set top_k"
        )


ENGINES: dict[str, Callable[[Config, Policy], Engine]] = {
    "model": lambda config, policy: ModelEngine(policy),
    "vllm": _vllm,
}
_CHECKS: dict[str, Callable[[Config], None]] = {"vllm": _check_vllm}


def check_engine(config: Config) -> None:
    """Returns nothing; raises one sentence, before a model is loaded, for an engine that cannot
    serve these settings."""
    if config.rollout in _CHECKS:
        _CHECKS[config.rollout](config)


def make_engine(config: Config, policy: Policy) -> Engine:
    """Returns the engine that samples the rollouts of a run."""
    check_engine(config)
    return ENGINES[config.rollout](config, policy)
