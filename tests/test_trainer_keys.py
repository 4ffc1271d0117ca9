# SPDX-License-Identifier: Apache-2.0
"""The smallest thing that a key changes, seen in the step that it should steer."""

import dataclasses

import pytest
import torch
from trainer_helpers import begun, compiled, small  # noqa: F401

import rlkern
from rlkern.trainer.online.advantages import Rewarded, with_advantage
from rlkern.trainer.update import rates

pytestmark = pytest.mark.usefixtures("compiled")


def run_of(tmp_path, **changes):
    """Returns a run without supervised start that is ready for its first step."""
    chosen = {"sft": None, "optimizer__max_grad_norm": 0.0, "batch__prompts": 8}
    return begun(small(tmp_path, **{**chosen, **changes}), tmp_path)


def step(run):
    """Returns (metrics, gradients by weight as the optimizer saw them) of the next step."""
    seen = []

    def look(optimizer, *_):
        seen.append(
            {
                name: p.grad.detach().clone()
                for name, p in run.parts.parameters().items()
                if p.grad is not None
            }
        )

    handle = run.updater.optimizer.register_step_pre_hook(look)
    values, _ = run.learner.step(run.updater, lambda _: None)
    handle.remove()
    return values, seen


def norm(gradients, *, critic=False):
    """Returns the norm of one part's gradients."""
    own = [g for name, g in gradients.items() if name.startswith("critic.") is critic]
    return torch.stack([g.double().square().sum() for g in own]).sum().sqrt().item()


def test_max_grad_norm_scales_each_part_down_before_the_optimizer_sees_it(tmp_path):
    given = {"algorithm": "ppo", "batch__epochs": 1, "reward__kl_coef": 0.0}
    _, free = step(run_of(tmp_path / "free", **given))
    _, held = step(run_of(tmp_path / "held", **given, optimizer__max_grad_norm=1e-3))
    assert norm(free[0]) > 0.01 and norm(free[0], critic=True) > 0.01
    assert norm(held[0]) == pytest.approx(1e-3, rel=1e-3)
    assert norm(held[0], critic=True) == pytest.approx(1e-3, rel=1e-3)


def test_the_loss_of_a_run_is_multiplied_by_the_correction(tmp_path):
    plain, (free,) = step(run_of(tmp_path / "plain"))
    # The sampler is the trainer, so every ratio is 1 and its bound decides.
    held, (half,) = step(run_of(tmp_path / "held", correction={"kind": "truncate", "high": 0.5}))
    assert held["correction"] == pytest.approx(0.5)
    assert norm(half) == pytest.approx(0.5 * norm(free), rel=1e-4)


def test_critic_coef_weighs_the_gradient_of_the_critic_only(tmp_path):
    given = {"algorithm": "ppo", "critic__kind": "separate", "batch__epochs": 1}
    _, (one,) = step(run_of(tmp_path / "one", **given, critic__coef=0.1))
    _, (two,) = step(run_of(tmp_path / "two", **given, critic__coef=0.2))
    assert norm(two, critic=True) == pytest.approx(2 * norm(one, critic=True), rel=1e-4)
    assert norm(two) == pytest.approx(norm(one), rel=1e-6)


def test_each_part_has_its_learning_rate_and_the_betas_of_the_settings(tmp_path):
    run = run_of(
        tmp_path, algorithm="ppo", optimizer__lr=1e-3, critic__lr=5e-3, optimizer__beta2=0.9,
        batch__epochs=1, reward__kl_coef=0.0,
    )  # fmt: skip
    step(run)
    groups = run.updater.optimizer.param_groups
    assert {(g["part"], g["lr"]) for g in groups} == {("policy", 1e-3), ("critic", 5e-3)}
    assert {g["betas"] for g in groups} == {(0.9, 0.9)}


def test_weight_decay_touches_matrices_and_no_vectors(tmp_path):
    run = run_of(tmp_path, optimizer__weight_decay=0.25)
    decay = {
        id(p): group["weight_decay"]
        for group in run.updater.optimizer.param_groups
        for p in group["params"]
    }
    found = {(p.ndim >= 2, decay[id(p)]) for p in run.parts.parameters().values()}
    assert found == {(True, 0.25), (False, 0.0)}


def test_the_first_step_after_the_critics_warmup_has_the_first_rate_of_the_schedule(tmp_path):
    run = run_of(
        tmp_path, algorithm="a2c", critic__warmup=1, optimizer__warmup=4, optimizer__lr=1e-2
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in run.parts.policy.parameters().items()}
    step(run)
    assert all(torch.equal(p, before[n]) for n, p in run.parts.policy.parameters().items())
    step(run)
    lr = {g["lr"] for g in run.updater.optimizer.param_groups if g["part"] == "policy"}
    assert lr == {1e-2 / 4}
    assert not all(torch.equal(p, before[n]) for n, p in run.parts.policy.parameters().items())
    assert rates(run.parts.settings, 1)["policy"] == 0.25


def test_a_resumed_run_goes_on_with_the_adapted_weight_of_the_kl(tmp_path):
    settings = small(
        tmp_path, algorithm="ppo", sft=None, reward__kl_coef=0.1,
        reward__adaptive={"target": 1e-6, "horizon": 100.0},
    )  # fmt: skip
    first = begun(settings, tmp_path)
    values, _ = step(first)
    assert values["objective/kl_coef"] == 0.1
    moved = first.parts.progress.reward_kl_coef
    assert moved != 0.1
    again = type(first.learner)(first.parts)  # as a resume makes it from the saved progress
    values, _ = again.step(first.updater, lambda _: None)
    assert values["objective/kl_coef"] == moved


def test_dr_grpo_divides_by_the_longest_answer_that_there_could_be(tmp_path):
    run = run_of(tmp_path, algorithm="dr_grpo", rollout__max_new_tokens=4)
    seen = []
    forward = run.updater.losses.forward

    def look(rows, train_policy):
        seen.append(rows)
        return forward(rows, train_policy)

    run.updater.losses.forward = look
    step(run)
    (rows,) = seen
    weight = rows.weight[rows.mask]
    assert torch.equal(weight, torch.full_like(weight, 1 / (len(rows.token) * 4)))


def test_the_ratio_is_to_the_probability_at_sampling(tmp_path):
    run = run_of(tmp_path, algorithm="grpo", batch__minibatches=2)
    seen = []
    forward = run.updater.losses.forward

    def look(rows, train_policy):
        seen.append(rows)
        return forward(rows, train_policy)

    run.updater.losses.forward = look
    step(run)
    assert seen
    for rows in seen:
        assert torch.equal(rows.anchor_logprob, rows.old_logprob)


def test_discount_lambda_and_whitening_reach_the_advantages(tmp_path):
    run = run_of(
        tmp_path, algorithm="ppo", advantage={"discount": 0.9, "gae_lambda": 0.8, "whiten": False}
    )  # fmt: skip
    parts = run.parts
    from rlkern.trainer.collect import collect

    rows = collect(parts, lambda _: None)
    value = torch.linspace(-1, 1, rows.token.numel()).view(rows.token.shape)
    rows = dataclasses.replace(rows, value=value, shaped_reward=rows.reward)
    for whiten in (False, True):
        asked = parts.settings.advantage.model_copy(update={"whiten": whiten})
        settings = parts.settings.model_copy(update={"advantage": asked})
        given = Rewarded(rows, 0.0, settings)
        found = with_advantage(given)
        expected = rlkern.gae(
            given.token_reward(), value, rows.mask, discount=0.9, gae_lambda=0.8, whiten=whiten
        )
        assert torch.equal(found.advantage, expected.advantage)
        assert torch.equal(found.value_target[rows.mask], expected.target[rows.mask])
