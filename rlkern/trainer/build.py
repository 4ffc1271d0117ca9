# SPDX-License-Identifier: Apache-2.0
"""The one place where the parts of a run are made: `load` reads, `begin` makes what is trained.

load   settings → task, rewards, model, sampling; nothing is written
begin  supervised start → pairs → adapters → reference, critic → learner, optimizer → resume
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from rlkern.backends.eager.preference_loss import PREFERENCE_KINDS
from rlkern.runs.device import give_back_memory
from rlkern.runs.errors import UserError
from rlkern.runs.files import publish
from rlkern.trainer.collect import Warn
from rlkern.trainer.critic import Critic, make_critic
from rlkern.trainer.data.source import check_unchanged, digests
from rlkern.trainer.equip import equipped
from rlkern.trainer.losses import Losses
from rlkern.trainer.models import lora
from rlkern.trainer.models.load import load_policy, make_policy, recomputing, train_last_layers
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.offline.pairs import Pairs, given_pairs, kept_pairs, of_file, write
from rlkern.trainer.offline.preferences import FromPairs, Judged, Preferences, Scored, pair_rows
from rlkern.trainer.offline.sampled import sampled_pairs
from rlkern.trainer.offline.supervised import AfterStep, Supervised, supervise
from rlkern.trainer.online.learner import Online
from rlkern.trainer.parts import Parts
from rlkern.trainer.processes.world import World
from rlkern.trainer.progress import Progress
from rlkern.trainer.reward.functions import load_rewards
from rlkern.trainer.reward.model import is_scorer, load_scorer, make_scorer
from rlkern.trainer.rollout.check import check_model
from rlkern.trainer.rollout.engines import make_engine
from rlkern.trainer.rollout.text import encode
from rlkern.trainer.run import checkpoint
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.reads import DATA
from rlkern.trainer.show.report import StepAnswers
from rlkern.trainer.tasks.registry import make_task
from rlkern.trainer.tasks.task import Task, first_prompts
from rlkern.trainer.update import Updater

REFERENCE = "reference"


class Learner(Protocol):
    """Takes the steps of a run; all that a resume needs is in its parts and the run directory."""

    def losses(self) -> Losses:
        """Returns the losses that an Updater steps on."""

    def step(self, updater: Updater, warn: Warn) -> tuple[dict[str, float], StepAnswers]:
        """Returns the metrics and the answers of the next step; the run moves one step on."""

    def evaluate(self) -> dict[str, float]:
        """Returns eval/* on held-out data, eval/accuracy among them."""


# Who reads a checkpoint of what an algorithm trains.
LOADERS: dict[str, Callable[..., Policy]] = {"policy": load_policy, "reward_model": load_scorer}
# By (learns_from, trains) of a declaration.
PREFERENCES: dict[tuple[str, str], type[Preferences]] = {
    ("pairs", "policy"): FromPairs,
    ("judged", "policy"): Judged,
    ("pairs", "reward_model"): Scored,
}
WITHOUT_PAIRS: dict[str, Callable[[Parts], Learner]] = {
    "rollouts": Online,
    "answers": Supervised,
}


class Run(NamedTuple):
    """A run that is ready for its next step."""

    parts: Parts
    learner: Learner
    updater: Updater


def load(settings: Settings, world: World, saved: Path | None) -> Parts:
    """Returns the parts of a run, its model as it starts or as a checkpoint has it."""
    task = make_task(settings)
    rewards = load_rewards(settings, task)
    if saved is None:
        progress = Progress(reward_kl_coef=settings.reward.kl_coef, data=digests(settings))
    else:
        progress = checkpoint.read_progress(saved, settings)
        then = "from here on the run goes by the new one"
        changed = check_unchanged(settings, progress.data, then)
        task = dataclasses.replace(task, notes=(*task.notes, *changed))
        progress.data = digests(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    policy = _policy(settings, task, world, saved)
    if settings.lora is not None and not lora.is_adapted(policy.model):
        lora.targets(policy.model, settings.lora.targets)
    parts = equipped(settings, task, rewards, world, policy, progress)
    parts = dataclasses.replace(parts, teacher=_teacher(settings, policy))
    _check_texts(parts)
    for speaker in parts.speakers():
        speaker.head.parameters()  # refused, if it is, while nothing of the run is written
    return parts


def _policy(settings: Settings, task: Task, world: World, saved: Path | None) -> Policy:
    device, dtype = world.device, settings.dtype
    if saved is not None:
        # A supervised start trains a language model, whatever comes of it.
        trains = "policy" if saved.name == checkpoint.SUPERVISED else settings.declared.trains
        policy = LOADERS[trains](saved, device=device, dtype=dtype)
    else:
        policy = make_policy(
            settings.model,
            alphabet=task.alphabet,
            seed=settings.seed,
            device=device,
            dtype=dtype,
            chat=task.chat,
        )
    train_last_layers(policy.model, settings.optimizer.train_layers)
    return recomputing(policy) if settings.memory.gradient_checkpointing else policy


def _teacher(settings: Settings, policy: Policy) -> Policy | None:
    """Returns the model that the run learns from, frozen; Raises UserError if it reads tokens in
    another way than the policy."""
    if settings.teacher is None:
        return None
    found = make_policy(
        settings.teacher, alphabet="", seed=0, device=policy.device, dtype=settings.dtype
    )
    if found.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(
            f"teacher {settings.teacher!r} must have the tokenizer of model {settings.model!r},"
            " whose tokens it scores, but its vocabulary differs"
        )
    found.model.requires_grad_(False)
    return found


def _check_texts(parts: Parts) -> None:
    """Raises UserError for a held-out or early training text that the model cannot read."""
    if parts.task.rows is None:  # those of a file were looked at one by one
        items, _ = parts.task.next_items(0, parts.settings.batch.prompts)
        prompts = [item.prompt for item in items + parts.task.held_out]
        encode(parts.policy, prompts, max_new_tokens=parts.sampling.max_new_tokens)
    if learner_of_pairs(parts.settings) and (given := given_pairs(parts.settings)):
        for pair in (*given.train, *given.held_out):
            pair_rows(parts, [pair])


def learner_of_pairs(settings: Settings) -> type[Preferences] | None:
    """Returns what learns from preferences in a run, None if nothing does."""
    return PREFERENCES.get((settings.declared.learns_from, settings.declared.trains))


def begin(
    parts: Parts,
    run: Path,
    saved: Path | None,
    *,
    say: Callable[[str], None],
    after_step: AfterStep,
) -> Run:
    """Returns the run, ready for its next step; after_step is called after each supervised one."""
    settings = parts.settings
    if settings.sft is not None and (saved is None or parts.progress.supervised):
        supervise(parts, settings.sft, saved, checkpoint.restore, after_step=after_step)
        saved = None
    # A reward model has no head to sample pairs with.
    pairs = _pairs(parts, run, say) if learner_of_pairs(settings) else None
    parts = dataclasses.replace(parts, policy=_trained(parts, run))
    for policy in parts.speakers():
        check_model(policy, first_prompts(parts.task), settings, say)
    if parts.policy is not parts.engine.policy:
        parts = dataclasses.replace(parts, engine=make_engine(settings, parts.policy))
    parts = dataclasses.replace(
        parts,
        reference=reference_of(parts, run) if reads_reference(settings) else None,
        critic=_critic(parts, saved) if settings.has_critic else None,
    )
    learner = learner_of(parts, pairs)
    updater = Updater(learner.losses(), settings, parts.world, frozen=_copies(parts))
    if saved is not None:
        checkpoint.restore(saved, parts, updater)
    give_back_memory()  # of passes that looked at the model
    return Run(parts, learner, updater)


def _trained(parts: Parts, run: Path) -> Policy:
    """Returns what is trained: the policy, under adapters if the settings ask for them, or with a
    score in place of its head."""
    return _TRAINED[parts.settings.declared.trains](parts, run)


def _scorer(parts: Parts, run: Path) -> Policy:
    return parts.policy if is_scorer(parts.policy) else make_scorer(parts.policy)


def _adapted(parts: Parts, run: Path) -> Policy:
    """Returns the policy under adapters, if the settings ask for them.

    A base that is not found under a name, such as one made here, is kept in the run.
    """
    settings, policy = parts.settings, parts.policy
    if settings.lora is None or lora.is_adapted(policy.model):
        return policy
    base = lora.base_name(settings)
    if base == lora.BESIDE and parts.world.is_main and not (run / lora.BASE).is_dir():
        publish(run / lora.BASE, policy.save)
    model = lora.with_adapters(policy.model, settings.lora, base=base, seed=settings.seed)
    return dataclasses.replace(policy, model=model)


_TRAINED: dict[str, Callable[[Parts, Path], Policy]] = {
    "policy": _adapted,
    "reward_model": _scorer,
}


def reads_reference(settings: Settings) -> bool:
    """Returns whether something of a run needs the starting model."""
    if learner_of_pairs(settings) is FromPairs:
        return PREFERENCE_KINDS[settings.loss.kind].reference
    return settings.reads_reference


def reference_of(parts: Parts, run: Path) -> Policy:
    """Returns a frozen copy of the starting policy, which the run keeps for a resume. Under
    adapters it is the model that they are laid over, which nothing changes."""
    folder, policy = run / REFERENCE, parts.policy
    if lora.is_adapted(policy.model):
        return policy.without_adapters()
    if parts.progress.step == 0:
        if parts.world.is_main and not folder.is_dir():
            publish(folder, policy.save)
        found = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.device, policy.mixed)
    else:
        found = load_policy(folder, device=policy.device, dtype=parts.settings.dtype)
    found.model.requires_grad_(False)
    found.passes.choose(policy.passes.way)
    return found


def _copies(parts: Parts) -> list[torch.nn.Module]:
    """Returns the models of the run that are not trained: a teacher, a reference that is a copy."""
    found = [each.model for each in (parts.reference, parts.teacher) if each is not None]
    return [model for model in found if model is not parts.policy.model]


def _critic(parts: Parts, saved: Path | None) -> Critic:
    return make_critic(parts.settings, parts.policy, saved)


def _pairs(parts: Parts, run: Path, say: Callable[[str], None]) -> Pairs:
    """Returns the pairs that the run keeps; they are made the first time."""
    if parts.settings.pairs.source == DATA:
        return of_file(parts.task)  # the run knows the file by its content
    pairs = kept_pairs(run)
    if pairs is None:
        pairs = given_pairs(parts.settings)
        if pairs is None:
            say("sampling pairs of answers from the starting model")
            pairs = sampled_pairs(parts)
        if parts.world.is_main:
            write(pairs, run)
        parts.world.barrier()
    say(f"{len(pairs.train)} pairs to learn from, {len(pairs.held_out)} held out")
    return pairs


def learner_of(parts: Parts, pairs: Pairs | None) -> Learner:
    """Returns what takes the steps of a run."""
    if pairs is None:
        return WITHOUT_PAIRS[parts.settings.declared.learns_from](parts)
    kind = learner_of_pairs(parts.settings)
    assert kind is not None
    return kind(parts, pairs)
