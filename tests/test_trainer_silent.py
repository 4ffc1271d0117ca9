# SPDX-License-Identifier: Apache-2.0
"""Groups without a gradient are left out of a step, and nothing that is learned changes."""

import dataclasses

import pytest
import torch
from keys_helpers import run_of, step, weights_of
from trainer_helpers import compiled  # noqa: F401

from rlkern.backends.eager.gates import GATES, PULLS
from rlkern.trainer.losses import Objective

pytestmark = pytest.mark.usefixtures("compiled")

# One algorithm for each level of the ratio, for a statistic, and for groups that count 0 times.
SILENT = ("grpo", "gspo", "gmpo", "vespo", "clip_cov", "dupo")
LOUD = {
    "a gate that pulls": {"algorithm": "dro"},
    "a critic": {"algorithm": "ppo"},
    "an entropy term": {"coefficients": {"entropy_coef": 0.01}},
    "a KL": {"coefficients": {"kl_coef": 0.01}},
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_has_a_slope_at_advantage_0_only_if_it_pulls(name):
    log_ratio = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    logprob = torch.full_like(log_ratio, -1.3).detach().requires_grad_()
    loss = GATES[name](logprob, log_ratio, torch.zeros(41).double(), 0.2, 0.3, 3.0, 0.5).loss
    asked = (logprob, log_ratio)
    found = torch.autograd.grad(loss.sum(), asked, allow_unused=True, materialize_grads=True)
    assert any(x.any() for x in found) == (name in PULLS)


def test_given_answers_have_no_gradient_of_their_own_and_read_no_reference(tmp_path):
    run = run_of(tmp_path, reward__functions="trainer_rewards:right_digits")
    _, (taken, *_) = step(run)
    objective = Objective.likelihood(run.parts.settings)
    rows = dataclasses.replace(taken.rows, ref_logprob=taken.rows.rollout_logprob)
    assert objective.silent_at_zero and objective.arguments(rows)["ref_logprob"] is None


def gradients(run):
    """Returns the gradients of the trained weights, by name."""
    known = {name: p.grad for name, p in run.parts.parameters().items()}
    return {name: torch.zeros(()) if g is None else g.clone() for name, g in known.items()}


@pytest.mark.parametrize("name", SILENT)
def test_a_group_that_is_left_out_has_a_gradient_of_exactly_0(tmp_path, name):
    given = {"algorithm": name, "batch__epochs": 1, "batch__minibatches": 1}
    if name == "dupo":
        given["groups__by"] = "weight"
    run = run_of(tmp_path, **given, reward__functions="trainer_rewards:right_digits")
    values, (taken, *_) = step(run)
    rows = taken.rows
    speaks = run.updater._own.speaks(rows)
    silent = (~speaks).nonzero().flatten()
    assert 0 < len(silent) < rows.prompts
    assert values["sampling/groups_silent"] == len(silent)
    run.updater.optimizer.zero_grad()
    run.updater.accumulate(rows.take(silent))
    assert not any(gradient.any() for gradient in gradients(run).values())
    run.updater.optimizer.zero_grad()
    run.updater.accumulate(rows)
    whole = gradients(run)
    run.updater.optimizer.zero_grad()
    run.updater.accumulate(run.updater._speaking(rows)[0])
    for key, found in gradients(run).items():
        # The same terms, which a product of fewer rows may add up in another order.
        assert (found - whole[key]).abs().max() <= 2e-6 * whole[key].abs().max()


def test_the_setting_decides_whether_silent_groups_are_left_out(tmp_path):
    found = {}
    for skip in (True, False):
        given = {"reward__functions": "trainer_rewards:right_digits"}
        run = run_of(tmp_path / str(skip), batch__skip_silent=skip, **given)
        seen, forward = [], run.updater.losses.forward

        def look(rows, train_policy, seen=seen, forward=forward):
            seen.append(rows.prompts)
            return forward(rows, train_policy)

        run.updater.losses.forward = look
        values, (taken,) = step(run)
        found[skip] = seen, values["sampling/groups_silent"], taken
    equal = int((found[True][2].rows.advantage.view(8, 4) == 0).all(-1).sum())
    assert 0 < equal < 8
    assert found[True][:2] == ([8 - equal], equal) and found[False][:2] == ([8], 0)
    for key, gradient in found[False][2].gradients.items():
        torch.testing.assert_close(found[True][2].gradients[key], gradient, rtol=1e-4, atol=1e-7)


def test_a_step_of_silent_groups_alone_moves_the_weights_as_if_all_were_computed(tmp_path):
    found = {}
    for skip in (True, False):
        run = run_of(tmp_path / str(skip), batch__skip_silent=skip, batch__prompts=3)
        _, (taken,) = step(run)
        before = weights_of(run)
        nothing = dataclasses.replace(taken.rows, advantage=taken.rows.advantage * 0)
        result = run.updater.step(nothing, {"policy": 1.0})
        assert result.grad_norm == 0 and result.silent == (3 if skip else 0)
        moved = {key: x - before[key] for key, x in weights_of(run).items()}
        found[skip] = moved
    assert any(x.any() for x in found[True].values()), "momentum goes on"
    for key, x in found[False].items():
        torch.testing.assert_close(found[True][key], x, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("why", LOUD)
def test_nothing_is_left_out_where_a_group_of_equal_rewards_has_a_gradient(tmp_path, why):
    run = run_of(tmp_path, **LOUD[why], reward__functions="trainer_rewards:nothing")
    values, taken = step(run)
    assert values["sampling/groups_silent"] == 0
    assert all(run.updater._own.speaks(each.rows) is None for each in taken)


def test_an_answer_that_is_imitated_is_not_left_out(tmp_path):
    run = run_of(tmp_path, loss__nll_coef=0.1, batch__prompts=3)
    _, (taken,) = step(run)
    weight = torch.zeros(taken.rows.token.shape)
    weight[0, 0] = 0.1
    rows = dataclasses.replace(taken.rows, advantage=taken.rows.advantage * 0, nll_weight=weight)
    assert run.updater._own.speaks(rows).tolist() == [True, False, False]


def test_a_group_whose_advantages_are_all_negative_is_not_left_out(tmp_path):
    run = run_of(tmp_path)
    rows = step(run)[1][0].rows
    advantage = torch.zeros(rows.prompts, len(rows.token) // rows.prompts)
    advantage[1] = -0.5
    rows = dataclasses.replace(rows, advantage=advantage.flatten(), nll_weight=None, penalty=None)
    expected = [n == 1 for n in range(rows.prompts)]
    assert run.updater._own.speaks(rows).tolist() == expected


def test_a_group_whose_tokens_all_weigh_0_is_left_out(tmp_path):
    run = run_of(tmp_path)
    rows = step(run)[1][0].rows
    weight = torch.ones(rows.token.shape)
    weight.view(rows.prompts, -1)[1] = 0.0
    rows = dataclasses.replace(
        rows, advantage=torch.ones(len(rows.token)), weight=weight, nll_weight=None, penalty=None
    )
    assert run.updater._own.speaks(rows).tolist() == [n != 1 for n in range(rows.prompts)]
