# SPDX-License-Identifier: Apache-2.0
"""What a run is measured by on rows of its own, after it: held-out pairs, or answers of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from rlkern.runs import best
from rlkern.runs.device import resolve_device
from rlkern.runs.errors import UserError
from rlkern.trainer import build
from rlkern.trainer.data.source import check_unchanged, digests
from rlkern.trainer.equip import equipped
from rlkern.trainer.offline.pairs import FOLDER, Pairs, kept_pairs, of_file
from rlkern.trainer.offline.preferences import Preferences
from rlkern.trainer.parts import Parts
from rlkern.trainer.processes.world import World
from rlkern.trainer.progress import Progress
from rlkern.trainer.reward.functions import load_rewards
from rlkern.trainer.rollout.check import check_model
from rlkern.trainer.run import checkpoint
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.reads import DATA
from rlkern.trainer.tasks.registry import make_task
from rlkern.trainer.tasks.task import first_prompts


def own_rows(settings: Settings, folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Returns the eval/* metrics of the model in a checkpoint's folder on the rows that its run
    holds out, without those of answers to a task; Raises UserError if they are not there, or not
    the same any more.
    """
    run = folder.resolve().parent
    parts = _parts(settings, run, folder, say)
    pairs = _pairs(parts, run) if build.learner_of_pairs(settings) else None
    for policy in parts.speakers():
        check_model(policy, first_prompts(parts.task), settings, say)
    if build.reads_reference(settings):
        parts = dataclasses.replace(parts, reference=build.reference_of(parts, run))
    learner = build.learner_of(parts, pairs)
    return learner.of_pairs() if isinstance(learner, Preferences) else learner.evaluate()


def check_same(settings: Settings, run: Path, say: Callable[[str], None]) -> None:
    """Says which functions of a run that these settings name have changed since it ended; Raises
    UserError if the rows have, of which the run may have learned others."""
    before, now = _progress(run).data, digests(settings)
    known = {key: before.get(key, is_now) for key, is_now in now.items()}
    for note in check_unchanged(settings, known, "these numbers are the new one's"):
        say(note)


def _progress(run: Path) -> Progress:
    state, _ = checkpoint.read_settings(best.chosen(run, best.NEWEST))
    return Progress(**state["progress"])


def _parts(settings: Settings, run: Path, folder: Path, say: Callable[[str], None]) -> Parts:
    """Returns the parts of a run with the weights of one of its folders, which no step changes."""
    check_same(settings, run, say)
    progress = _progress(run)
    progress.step = max(1, progress.step)  # its reference is the one that it keeps
    if settings.threads:
        torch.set_num_threads(settings.threads)
    world, task = World(device=resolve_device(settings.device)), make_task(settings)
    read = build.LOADERS[settings.declared.trains]
    policy = read(folder, device=world.device, dtype=settings.dtype)
    policy.model.requires_grad_(False)
    return equipped(settings, task, load_rewards(settings, task), world, policy, progress)


def _pairs(parts: Parts, run: Path) -> Pairs:
    if parts.settings.pairs.source == DATA:
        return of_file(parts.task)
    found = kept_pairs(run)
    if found is None:
        raise UserError(f"{run} must hold the pairs of the run, there is no folder {FOLDER} in it")
    return found
