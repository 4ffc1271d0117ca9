# SPDX-License-Identifier: Apache-2.0
"""The statistic of a step in the trainer: of all rows of it, however they are split."""

import dataclasses

import pytest
import torch
from trainer_helpers import begun, compiled, ragged_rollout, small, tiny_policy  # noqa: F401

import rlkern
from rlkern.runs.errors import UserError
from rlkern.trainer.losses import Objective, PolicyLosses
from rlkern.trainer.models.policy import token_scores
from rlkern.trainer.online.statistic import with_statistic
from rlkern.trainer.preflight import check_coefficients
from rlkern.trainer.processes.world import World
from rlkern.trainer.update import Updater

pytestmark = pytest.mark.usefixtures("compiled")
NAMES = [name for name, a in rlkern.algorithms().items() if a.statistic]
EVERY = pytest.mark.parametrize("name", NAMES)


def step_of(tmp_path, name, pieces=1):
    """Returns the parts of a run whose policy has moved, and rows of one of its steps."""
    given = small(tmp_path, algorithm=name, sft=None, batch__micro_batches=pieces,
                  batch__minibatches=1)  # fmt: skip
    parts, *_ = begun(given, tmp_path)
    parts = dataclasses.replace(parts, policy=tiny_policy(seed=1))
    rows = ragged_rollout(parts.policy)
    drift = 0.5 * torch.sin(torch.arange(rows.mask.numel())).view(rows.mask.shape)
    return parts, dataclasses.replace(
        rows,
        advantage=torch.randn(len(rows.token), generator=torch.Generator().manual_seed(0)),
        weight=rlkern.aggregate.token_weight(rows.mask, "token_mean"),
        anchor_logprob=rows.rollout_logprob + drift,
    )


def gradient_of(tmp_path, name, pieces):
    parts, rows = step_of(tmp_path, name, pieces)
    rows = with_statistic(parts, rows)
    settings = parts.settings
    losses = PolicyLosses(parts.policy, settings, Objective.of(settings))
    Updater(losses, settings, World()).accumulate(rows)
    return torch.cat([p.grad.flatten() for p in parts.policy.parameters().values()])


@EVERY
def test_a_step_has_one_statistic_whatever_it_is_split_into(tmp_path, name):
    whole, *split = (gradient_of(tmp_path / str(n), name, n) for n in (1, 2, 4))
    assert whole.abs().max() > 0
    for gradient in split:
        assert (gradient - whole).abs().max() <= 1e-5 * whole.abs().max()


@EVERY
def test_the_factor_is_that_of_the_library_on_all_rows_times_the_correction(tmp_path, name):
    parts, rows = step_of(tmp_path, name)
    with torch.no_grad():
        now = token_scores(parts.policy, rows, parts.settings)
    seed = parts.generator.get_state()
    expected = rlkern.statistics.factor(
        now.logprob, rows.anchor_logprob, rows.advantage, rows.mask, algorithm=name,
        entropy=now.entropy, generator=parts.generator,
    )  # fmt: skip
    assert expected[rows.mask].unique().numel() > 1  # a half of the step would have another one
    parts.generator.set_state(seed)
    row = parts.settings.declared.statistic_row
    assert getattr(with_statistic(parts, rows), row).equal(expected)
    parts.generator.set_state(seed)
    twice = 2 * rows.mask.float()
    both = with_statistic(parts, dataclasses.replace(rows, correction=twice))
    assert both.correction.equal(2 * expected if row == "correction" else twice)


@EVERY
def test_every_update_sees_the_factor_of_its_own_step(tmp_path, name, monkeypatch):
    seen, made, row = [], [], rlkern.algorithms()[name].statistic_row

    def policy_loss(*arguments, **options):
        seen.append(options[row])
        return original(*arguments, **options)

    def factor(*arguments, **options):
        made.append(whole(*arguments, **options))
        return made[-1]

    original, whole = rlkern.linear_policy_loss, rlkern.statistics.factor
    monkeypatch.setattr(rlkern, "linear_policy_loss", policy_loss)
    monkeypatch.setattr(rlkern.statistics, "factor", factor)
    _, learner, updater = begun(
        small(tmp_path, algorithm=name, sft=None, batch__prompts=8, batch__minibatches=2,
              batch__micro_batches=2, optimizer__lr=0.01, groups="all"),
        tmp_path,
    )  # fmt: skip
    values, _ = learner.step(updater, lambda sentence: None)
    assert len(made) == 2 and len(seen) == 4
    assert torch.cat(seen).equal(torch.cat(made))
    assert 0 < values["correction"] <= (1.2 if row == "correction" else 1)


def test_a_coefficient_of_a_statistic_is_a_key_of_the_run(tmp_path):
    given = {"algorithm": "m2po", "coefficients": {"second_moment": 0.5}}
    parts, rows = step_of(tmp_path, "m2po")
    wide = dataclasses.replace(parts, settings=small(tmp_path, **given))
    assert (
        with_statistic(wide, rows).correction.sum() > with_statistic(parts, rows).correction.sum()
    )
    with pytest.raises(UserError, match="algorithm m2po: second_moment must not be negative, got"):
        check_coefficients(small(tmp_path, algorithm="m2po", coefficients={"second_moment": -1.0}))
