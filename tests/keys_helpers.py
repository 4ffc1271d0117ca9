# SPDX-License-Identifier: Apache-2.0
"""Runs whose steps are watched from the inside, and the keys whose smallest effect a test holds."""

import copy
import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor
from trainer_helpers import begun, small

from rlkern.trainer.rows import Rows

HELD: set[str] = set()


def holds(*keys):
    """Marks a test as one that fails if one of these keys no longer reaches the step."""

    def mark(test):
        HELD.update(keys)
        return test

    return mark


class Taken(NamedTuple):
    """An optimizer step as it was taken."""

    rows: Rows  # as the losses read them
    train_policy: bool
    gradients: dict[str, Tensor]  # by weight, as the optimizer saw them
    weights: dict[str, Tensor]  # by name, before it
    rates: dict[str, float]  # by part


def run_of(tmp_path, **changes):
    """Returns a run without supervised start that is ready for its first step."""
    chosen = {"sft": None, "optimizer__max_grad_norm": 0.0, "batch__prompts": 8}
    return begun(small(tmp_path, **{**chosen, **changes}), tmp_path)


def watched(run, step):
    """Returns (what step() returns, the optimizer steps in it)."""
    updater, taken, asked = run.updater, [], []
    original = updater.step

    def remembered(rows, *rest, train_policy=True):
        asked.append((rows, train_policy))
        return original(rows, *rest, train_policy=train_policy)

    def look(optimizer, *_):
        known = {name: p.grad for name, p in run.parts.parameters().items()}
        gradients = {name: g.detach().clone() for name, g in known.items() if g is not None}
        rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
        taken.append(Taken(*asked[-1], gradients, weights_of(run), rates))

    handle, updater.step = updater.optimizer.register_step_pre_hook(look), remembered
    try:
        return step(), taken
    finally:
        handle.remove()
        updater.step = original


def step(run):
    """Returns (metrics, optimizer steps) of the next step of a run."""
    (values, _), taken = watched(run, lambda: run.learner.step(run.updater, lambda _: None))
    return values, taken


def steps(run, count):
    """Returns the optimizer steps of the next steps of a run."""
    return [taken for _ in range(count) for taken in step(run)[1]]


def norm(taken, *, critic=False):
    """Returns the norm of one part's gradients."""
    own = [g for name, g in taken.gradients.items() if name.startswith("critic.") is critic]
    return torch.stack([g.double().square().sum() for g in own]).sum().sqrt().item()


def calls(monkeypatch, owner, name):
    """Returns a list that gets the (arguments, keyword arguments, result) of each call."""
    original, seen = getattr(owner, name), []

    def remembered(*arguments, **named):
        found = original(*arguments, **named)
        seen.append((arguments, named, found))
        return found

    monkeypatch.setattr(owner, name, remembered)
    return seen


def policy_at(run, taken):
    """Returns a copy of the policy as it was before an optimizer step."""
    policy = dataclasses.replace(run.parts.policy, model=copy.deepcopy(run.parts.policy.model))
    for name, p in policy.parameters().items():
        p.data.copy_(taken.weights[name])
    return policy


def weights_of(run):
    """Returns a copy of the weights that are trained, by name."""
    return {name: p.detach().clone() for name, p in run.parts.parameters().items()}
