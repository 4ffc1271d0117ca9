# SPDX-License-Identifier: Apache-2.0
"""Everything a run holds in memory, checked before the first file is written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import rlkern
from rlkern.advantage import ESTIMATORS
from rlkern.trainer import checkpoint
from rlkern.trainer.checkpoint import Progress
from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.files import publish
from rlkern.trainer.models import (
    Policy,
    check_model_name,
    load_policy,
    make_policy,
    resolve_device,
    train_last_layers,
)
from rlkern.trainer.reward import RewardFunction, load_rewards
from rlkern.trainer.rollout import encode, stop_tokens
from rlkern.trainer.settings import asked_coefficients, validate
from rlkern.trainer.step import learning_rate, make_optimizer
from rlkern.trainer.tasks import Task, make_task

REFERENCE = "reference"


@dataclass
class Session:
    """The parts of a run; progress is the only one that is not rebuilt from config
    and checkpoint."""

    config: Config
    algorithm: Any
    coefficients: dict[str, float]
    task: Task
    rewards: list[RewardFunction]
    policy: Policy
    stop: torch.Tensor
    max_new_tokens: int
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    progress: Progress
    reference: Policy | None = None

    @property
    def kl_coef(self) -> float:
        """Returns the weight of the KL to the reference in this run."""
        return {**self.algorithm.defaults, **self.coefficients}.get("kl_coef", 0.0)


def _beyond_this_trainer(algorithm: rlkern.Algorithm) -> Iterator[str]:
    """Yields what an algorithm asks for and would otherwise silently go without."""
    names = {
        "value": "a value head",
        "reference_samples": "answers of the reference",
        "greedy": "a greedy answer to each prompt",
        "several_rewards": "rewards kept apart",
    }
    yield from (names[need] for need in algorithm.needs if need in names)
    if algorithm.sampling != "all":
        yield f"{algorithm.sampling} sampling"
    yield from (f"the {term} term in the reward" for term in algorithm.reward_terms)
    if algorithm.anchor != "old":
        yield f"log-probabilities of the {algorithm.anchor} in place of the old policy's"
    if algorithm.advantage not in ESTIMATORS:
        yield f"advantages by {algorithm.advantage}"


def check(config: Config) -> tuple[Any, dict[str, float]]:
    """Returns the algorithm and its coefficients; raises one sentence for settings that
    cannot work."""
    validate(config)
    known = rlkern.algorithms()
    if config.algorithm not in known:
        raise UserError(
            f"there is no algorithm {config.algorithm!r}: use one of {', '.join(known)}"
        )
    algorithm = known[config.algorithm]
    for missing in _beyond_this_trainer(algorithm):
        raise UserError(
            f"algorithm {algorithm.name} needs {missing}, which the trainer does not have yet;"
            " its loss is rlkern.policy_loss"
        )
    if algorithm.advantage != "batch_centered" and config.group_size < 2:
        raise UserError(
            f"group_size must be at least 2 for algorithm {algorithm.name}, got {config.group_size}"
        )
    coefficients = asked_coefficients(config)
    for name in coefficients:
        if name not in algorithm.defaults:
            takes = ", ".join(algorithm.defaults)
            raise UserError(
                f"algorithm {algorithm.name} has no coefficient {name!r}: it takes {takes}"
            )
    resolve_device(config.device)
    check_model_name(config.model)
    return algorithm, coefficients


def build(config: Config, *, resume_from: Path | None) -> Session:
    """Returns a session, at its start or as a checkpoint left it. Writes nothing into the run
    directory.
    """
    algorithm, coefficients = check(config)
    task = make_task(
        config.task,
        seed=config.seed,
        eval_items=config.eval_items,
        shots=config.shots,
        template=config.prompt_template,
        options=config.task_options,
    )
    rewards = load_rewards(config.reward, task)
    progress = Progress() if resume_from is None else checkpoint.read_state(resume_from, config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    policy = _policy(config, task, resume_from)
    max_new_tokens = config.max_new_tokens or task.max_new_tokens
    _check_prompts(policy, task, config, max_new_tokens)
    optimizer = make_optimizer(policy, config, lr=learning_rate(config, progress.update))
    generator = torch.Generator(policy.device).manual_seed(config.seed)
    if resume_from is not None:
        checkpoint.restore(resume_from, policy, optimizer, generator)
    return Session(
        config=config,
        algorithm=algorithm,
        coefficients=coefficients,
        task=task,
        rewards=rewards,
        policy=policy,
        stop=stop_tokens(policy, task.stop),
        max_new_tokens=max_new_tokens,
        optimizer=optimizer,
        generator=generator,
        progress=progress,
    )


def _policy(config: Config, task: Task, resume_from: Path | None) -> Policy:
    device = resolve_device(config.device)
    if resume_from is None:
        policy = make_policy(
            config.model,
            alphabet=task.alphabet,
            seed=config.seed,
            device=device,
            dtype=config.dtype,
        )
    else:
        policy = load_policy(resume_from, device=device, dtype=config.dtype)
    train_last_layers(policy.model, config.train_layers)
    return policy


def _check_prompts(policy: Policy, task: Task, config: Config, max_new_tokens: int) -> None:
    """Returns nothing; raises one sentence if a held-out or early training prompt cannot be
    used.
    """
    items, _ = task.next_items(0, config.prompts)
    encode(policy, [item.prompt for item in items + task.held_out], max_new_tokens=max_new_tokens)


def attach_reference(session: Session, run: Path) -> None:
    """Freeze a copy of the starting policy if the loss has a KL to it; kept in the run for a
    resume.
    """
    if session.kl_coef == 0:
        return
    folder, policy = run / REFERENCE, session.policy
    if not folder.is_dir():
        publish(folder, policy.save)
    if session.progress.step == 0:
        model = copy.deepcopy(policy.model).requires_grad_(False)
        session.reference = Policy(model, policy.tokenizer, policy.device, policy.mixed)
    else:
        session.reference = load_policy(folder, device=policy.device, dtype=session.config.dtype)
        session.reference.model.requires_grad_(False)
