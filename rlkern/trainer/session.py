# SPDX-License-Identifier: Apache-2.0
"""Everything a run holds in memory, checked before the first file is written."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlkern.trainer.checked import check, checked_task
from rlkern.trainer.config import Config
from rlkern.trainer.models import lora
from rlkern.trainer.models.policy import (
    Policy,
    load_policy,
    make_policy,
    recompute_layers,
    resolve_device,
    train_last_layers,
)
from rlkern.trainer.offline.reward_model import load_scorer
from rlkern.trainer.online.critic import Critic, make_critic
from rlkern.trainer.processes import parallel
from rlkern.trainer.processes.world import World
from rlkern.trainer.progress import Progress
from rlkern.trainer.reward import Rewards, load_rewards
from rlkern.trainer.rollout.data import Sampling, encode, stop_tokens
from rlkern.trainer.rollout.engines import Engine, make_engine
from rlkern.trainer.run import checkpoint
from rlkern.trainer.run.files import publish
from rlkern.trainer.settings import resolve
from rlkern.trainer.step import learning_rate, make_optimizer
from rlkern.trainer.tasks.task import Task

REFERENCE = "reference"
# Who reads a checkpoint of what an algorithm trains.
LOADERS: dict[str, Callable[..., Policy]] = {"policy": load_policy, "reward_model": load_scorer}


@dataclass
class Session:
    """The parts of a run; progress is the only one that is not rebuilt from config
    and checkpoint."""

    config: Config
    algorithm: Any
    coefficients: dict[str, float]
    task: Task
    rewards: Rewards
    policy: Policy
    sampling: Sampling
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    progress: Progress
    world: World
    engine: Engine
    critic: Critic | None = None
    reference: Policy | None = None
    losses: torch.nn.Module | None = None

    @property
    def kl_coef(self) -> float:
        """Returns the weight of the KL to the reference in this run's loss."""
        return {**self.algorithm.defaults, **self.coefficients}.get("kl_coef", 0.0)

    @property
    def kl_in_reward(self) -> bool:
        """Returns True where the reward has a KL to the reference."""
        asked = "kl" in getattr(self.algorithm, "reward_terms", ())
        return asked and bool(self.config.reward_kl_coef)

    @property
    def reads_reference(self) -> bool:
        """Returns True where something of this run needs the starting model."""
        return (
            self.kl_coef != 0
            or self.kl_in_reward
            or getattr(self.algorithm, "anchor", "old") == "reference"
            or bool({"reference", "reference_samples"} & set(self.algorithm.needs))
        )

    @property
    def updates(self) -> int:
        """Returns the optimizer steps on each rollout."""
        return (self.config.epochs or 1) * (self.config.minibatches or 1)

    def rates(self, update: int) -> dict[str, float]:
        """Returns the share of the peak learning rate that each part has in an optimizer step.

        The policy's schedule begins when its critic has warmed up: else its first steps, in which
        AdamW knows nothing of the gradient's size, would be full ones.
        """
        total, waiting = self.config.steps * self.updates, 0
        if self.critic is not None:
            waiting = self.config.critic_warmup * self.updates
        policy = learning_rate(self.config, max(0, update - waiting), total - waiting)
        return {"policy": policy, "critic": learning_rate(self.config, update, total)}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Returns the weights that are trained, by name, those of the critic after a prefix."""
        critic = self.critic.parameters() if self.critic is not None else {}
        return {**self.policy.parameters(), **{f"critic.{k}": p for k, p in critic.items()}}

    def spread(self, losses: torch.nn.Module) -> torch.nn.Module:
        """Returns the losses as all processes compute them together; what the optimizer remembers
        goes where its weights went."""
        before, state = self.parameters(), self.optimizer.state
        self.losses = parallel.spread(losses, self.world, self.config)
        if parallel.is_sharded(losses):
            self.optimizer = make_optimizer(self.policy, self.critic, self.config)
            for name, parameter in self.parameters().items():
                kept = state.get(before[name], {})
                for key, value in kept.items():
                    self.optimizer.state[parameter][key] = parallel.like(value, parameter)
            for model in self._beside():
                parallel.sharded(model, self.world)
        return self.losses

    def gathered(self) -> contextlib.AbstractContextManager:
        """Returns the context in which each process may sample and score as it likes."""
        stack = contextlib.ExitStack()
        if self.losses is not None:
            for module in (self.losses, *self._beside()):
                stack.enter_context(parallel.gathered(module))
        return stack

    def _beside(self) -> list[Any]:
        """Returns the models of the run that are not trained: a reference that is a copy."""
        copies = [] if self.reference is None else [self.reference.model]
        return [model for model in copies if model is not self.policy.model]


def build(config: Config, *, resume_from: Path | None, world: World | None = None) -> Session:
    """Returns a session, at its start or as a checkpoint left it. Writes nothing into the run
    directory.
    """
    algorithm, coefficients = check(config)
    config = resolve(config)
    task, max_turns = checked_task(config, algorithm)
    rewards = load_rewards(config, task)
    fresh = Progress(reward_kl_coef=config.reward_kl_coef or 0.0)
    progress = fresh if resume_from is None else checkpoint.read_state(resume_from, config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    policy = _policy(config, task, resume_from, LOADERS[algorithm.trains])
    if config.lora_rank and not lora.is_adapted(policy.model):
        lora.targets(policy.model, config.lora_targets)
    critic = None
    if "value" in algorithm.needs:
        critic = make_critic(config, policy, resume_from)
    sampling = Sampling(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens or task.max_new_tokens,
        stop=stop_tokens(policy, task.stop),
        max_turns=max_turns,
    )
    _check_prompts(policy, task, config, sampling.max_new_tokens)
    optimizer = make_optimizer(policy, critic, config)
    session = Session(
        config=config,
        algorithm=algorithm,
        coefficients=coefficients,
        task=task,
        rewards=rewards,
        policy=policy,
        sampling=sampling,
        optimizer=optimizer,
        generator=torch.Generator().manual_seed(config.seed),
        progress=progress,
        world=world or World(device=policy.device),
        engine=make_engine(config, policy),
        critic=critic,
    )
    if resume_from is not None:
        checkpoint.restore(resume_from, session)
    return session


def _policy(
    config: Config, task: Task, resume_from: Path | None, load: Callable[..., Policy]
) -> Policy:
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
        policy = load(resume_from, device=device, dtype=config.dtype)
    train_last_layers(policy.model, config.train_layers)
    if config.gradient_checkpointing:
        recompute_layers(policy)
    return policy


def _check_prompts(policy: Policy, task: Task, config: Config, max_new_tokens: int) -> None:
    """Returns nothing; raises one sentence if a held-out or early training prompt cannot be
    used.
    """
    items, _ = task.next_items(0, config.prompts)
    encode(policy, [item.prompt for item in items + task.held_out], max_new_tokens=max_new_tokens)


def attach_adapters(session: Session, run: Path) -> None:
    """Lay adapters over the policy if the settings ask for them; from here on they alone train.

    A base that is not found under a name, such as one made here, is kept in the run.
    """
    config, policy = session.config, session.policy
    if not config.lora_rank or lora.is_adapted(policy.model):
        return
    base = lora.base_name(config)
    if base == lora.BESIDE and session.world.is_main and not (run / lora.BASE).is_dir():
        publish(run / lora.BASE, policy.save)
    policy.adapt(lora.with_adapters(policy.model, config, base=base))
    session.optimizer = make_optimizer(policy, session.critic, config)


def attach_reference(session: Session, run: Path) -> None:
    """Freeze a copy of the starting policy if the run reads it; kept in the run for a resume.
    Under adapters it is the model that they are laid over, which nothing changes."""
    if not session.reads_reference:
        return
    folder, policy = run / REFERENCE, session.policy
    if lora.is_adapted(policy.model):
        session.reference = policy.without_adapters()
        return
    if session.world.is_main and not folder.is_dir():
        publish(folder, policy.save)
    if session.progress.step == 0:
        model = copy.deepcopy(policy.model).requires_grad_(False)
        session.reference = Policy(model, policy.tokenizer, policy.device, policy.mixed)
    else:
        session.reference = load_policy(folder, device=policy.device, dtype=session.config.dtype)
        session.reference.model.requires_grad_(False)
