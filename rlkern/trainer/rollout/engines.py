# SPDX-License-Identifier: Apache-2.0
"""Who samples a rollout: the policy with its own KV cache, or an inference engine beside it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from rlkern.runs.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.sampler import ModelEngine, Sampling
from rlkern.trainer.rollout.text import Prompts
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings


class Engine(Protocol):
    """Samples answers of a policy; `refresh` takes over the weights that were trained."""

    policy: Policy

    def refresh(self) -> None:
        """Takes the policy's weights as they are now; before each rollout."""

    def sample(
        self, prompts: Prompts, sampling: Sampling, *, group_size: int, uniform: Tensor | None
    ) -> Rows:
        """Returns group_size answers to each prompt; the same for the same numbers."""


def _vllm(settings: Settings, policy: Policy) -> Engine:
    from rlkern.trainer.rollout.vllm_engine import VllmEngine

    return VllmEngine(settings, policy)


def _check_vllm(settings: Settings) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "rollout.engine vllm needs the package vllm, which is not installed: install"
            " rlkern[vllm], or use --rollout.engine model"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"rollout.engine vllm serves a run of one process, got {os.environ['WORLD_SIZE']}; use"
            " --rollout.engine model"
        )
    if settings.lora is not None:
        raise UserError(
            f"rollout.engine vllm takes whole weights, got lora.rank {settings.lora.rank}; use"
            " --rollout.engine model or --lora null"
        )
    rollout = settings.rollout
    if rollout.top_p < 1 and not rollout.top_k:
        # vLLM reports as many log-probabilities as it is asked for, never "all that top-p left".
        raise UserError(
            f"rollout.engine vllm reports the ids that rollout.top_p {rollout.top_p} left only with"
            " a top_k: set rollout.top_k"
        )


ENGINES: dict[str, Callable[[Settings, Policy], Engine]] = {
    "model": lambda settings, policy: ModelEngine(policy),
    "vllm": _vllm,
}
_CHECKS: dict[str, Callable[[Settings], None]] = {"vllm": _check_vllm}


def check_engine(settings: Settings) -> None:
    """Raises UserError, before a model is loaded, for an engine that cannot serve the settings."""
    if settings.rollout.engine in _CHECKS:
        _CHECKS[settings.rollout.engine](settings)


def make_engine(settings: Settings, policy: Policy) -> Engine:
    """Returns the engine that samples the rollouts of a run."""
    return ENGINES[settings.rollout.engine](settings, policy)
