# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: the split, the backend and a poisoned batch."""

import dataclasses

import pytest
import torch
from trainer_helpers import (
    addition_task,
    compiled,  # noqa: F401
    ragged_rollout,
    small,
    small_session,
    tiny_policy,
)

import rlkern
from rlkern.trainer import step
from rlkern.trainer.batch import Batch, minibatches, weighted
from rlkern.trainer.offline import sft
from rlkern.trainer.offline.sft import gold_rollout, supervise
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.data import stop_tokens
from rlkern.trainer.scoring import hidden_states
from rlkern.trainer.session import build
from rlkern.trainer.show.report import completion_statistics
from rlkern.trainer.step import (
    Losses,
    accumulate,
    learning_rate,
    make_optimizer,
    optimizer_step,
    pieces,
)

pytestmark = pytest.mark.usefixtures("compiled")


def batch_of(policy, *, advantage=None):
    rollout = ragged_rollout(policy)
    if advantage is None:
        advantage = torch.randn(rollout.token.shape[0], generator=torch.Generator().manual_seed(0))
    old = rollout.rollout_logprob + 0.3 * torch.sin(torch.arange(rollout.mask.numel())).view(
        rollout.mask.shape
    )
    weight = rlkern.aggregate.token_weight(rollout.mask, "sequence_token_mean")
    return Batch(rollout, advantage, weight, old_logprob=old, ref_logprob=old - 0.1)


def gradients(config, *, coefficients):
    policy = tiny_policy()
    losses = Losses(policy, None, config)
    sums = accumulate(losses, batch_of(policy), config, coefficients, world=World())
    flat = torch.cat([p.grad.flatten() for p in policy.parameters().values()])
    metrics = rlkern.metrics_dict(rlkern.merge_metrics(sums.metrics))
    return sums.loss, flat, metrics, sums.differences


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_the_gradient_does_not_depend_on_the_number_of_micro_batches(tmp_path, count, share):
    coefficients = {"coefficients__kl_coef": 0.1, "coefficients__entropy_coef": 0.01}
    whole = small(tmp_path, batch__prompts=4, memory__share_prompts=share)
    split = dataclasses.replace(whole, batch__micro_batches=count)
    loss, gradient, metrics, _ = gradients(whole, coefficients=coefficients)
    split_loss, split_gradient, split_metrics, _ = gradients(split, coefficients=coefficients)
    scale = gradient.abs().max()
    assert scale > 0
    assert (gradient - split_gradient).abs().max() <= 1e-5 * scale
    torch.testing.assert_close(loss, split_loss, rtol=1e-5, atol=1e-6)
    assert metrics == pytest.approx(split_metrics, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("loss", ["linear", "fused"])
def test_fused_and_eager_losses_give_the_same_gradient(tmp_path, loss):
    coefficients = {"coefficients__kl_coef": 0.1, "coefficients__entropy_coef": 0.01}
    fused = gradients(small(tmp_path, loss__path=loss), coefficients=coefficients)
    eager = gradients(small(tmp_path, loss__path="eager"), coefficients=coefficients)
    torch.testing.assert_close(fused[0], eager[0], rtol=1e-5, atol=1e-6)
    assert (fused[1] - eager[1]).abs().max() <= 1e-5 * eager[1].abs().max()
    assert fused[2] == pytest.approx(eager[2], rel=1e-4, abs=1e-5)


def test_comparing_with_eager_changes_no_gradient_and_finds_rounding_only(tmp_path):
    plain = gradients(small(tmp_path), coefficients={})
    compared = gradients(small(tmp_path, loss__compare="eager"), coefficients={})
    assert torch.equal(plain[1], compared[1])
    assert set(compared[3]) == {"compare/loss_difference", "compare/grad_norm_difference"}
    assert max(compared[3].values()) < 1e-5


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_hidden_states_that_are_not_finite_skip_the_step_and_leave_the_weights_alone(
    tmp_path, monkeypatch, poison
):
    policy, config = tiny_policy(), small(tmp_path)
    optimizer, losses = make_optimizer(policy, None, config), Losses(policy, None, config)
    before = {name: p.detach().clone() for name, p in policy.parameters().items()}
    batch = batch_of(policy)
    spoilt = torch.zeros(*batch.rollout.token.shape, policy.model.config.hidden_size)
    spoilt[0, 0, 0] = poison
    with monkeypatch.context() as patch:
        patch.setattr(step, "hidden_states", lambda *a, **k: hidden_states(*a, **k) + spoilt)
        result = optimizer_step(
            losses, optimizer, batch, config, {}, rates={"policy": 1.0}, world=World()
        )
    assert result.skipped
    assert all(torch.equal(before[name], p) for name, p in policy.parameters().items())
    result = optimizer_step(
        losses, optimizer, batch, config, {}, rates={"policy": 1.0}, world=World()
    )
    assert not result.skipped
    assert any(not torch.equal(before[name], p) for name, p in policy.parameters().items())


def test_pieces_cover_every_prompt_once():
    for prompts in range(1, 12):
        for count in range(1, prompts + 1):
            covered = [i for first, last in pieces(prompts, count) for i in range(first, last)]
            assert covered == list(range(prompts))


def test_the_learning_rate_rises_then_falls_to_its_floor(tmp_path):
    config = small(tmp_path, optimizer__lr=1.0, optimizer__warmup=2, steps=10, optimizer__decay="linear", optimizer__decay__floor=0.1)
    rates = [learning_rate(config, update, 10) for update in range(11)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[10] == pytest.approx(0.1)


def test_the_learning_rate_of_the_policy_waits_for_its_critic(tmp_path):
    config = small(tmp_path, algorithm="a2c", critic__warmup=2, optimizer__warmup=4, batch__minibatches=2)
    session = build(config, resume_from=None)
    rates = [session.rates(update) for update in range(12)]
    assert [r["critic"] for r in rates[:5]] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [r["policy"] for r in rates[4:9]] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_supervised_stage_ends_at_its_target(tmp_path, monkeypatch):
    session, losses = small_session(tmp_path, sft__steps=40, sft__target=0.5), []
    monkeypatch.setattr(sft, "_accuracy", lambda session, items: len(losses) / 40)
    supervise(session, after_step=lambda _, loss: losses.append(loss))
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_minibatches_visit_every_prompt_once_an_epoch_in_an_order_of_the_seed():
    def orders(seed):
        generator = torch.Generator().manual_seed(seed)
        return [x.tolist() for x in minibatches(8, 2, 3, generator)]

    steps = orders(0)
    assert len(steps) == 6
    assert sorted(sum(steps[:3], [])) == sorted(sum(steps[3:], [])) == list(range(8))
    assert steps[:3] != steps[3:] and steps == orders(0) != orders(1)


def test_a_minibatch_has_the_weights_of_its_own_tokens(tmp_path):
    batch = batch_of(tiny_policy())
    part = weighted(batch.take(torch.tensor([2, 0])), None, "token_mean", None)
    assert part.weight.sum().item() == pytest.approx(1.0)
    rows = [6, 7, 8, 0, 1, 2]
    assert torch.equal(part.rollout.token, batch.rollout.token[rows])
    assert torch.equal(part.advantage, batch.advantage[rows])


def test_right_answers_become_rows_that_end_with_eos():
    policy, task = tiny_policy(), addition_task()
    rollout = gold_rollout(policy, task.held_out[:3], task)
    assert rollout.token[:, -1].tolist() == [policy.tokenizer.eos_token_id] * 3
    statistics = completion_statistics(rollout, stop_tokens(policy, ""))
    assert statistics["completions/clipped_ratio"] == 0
    assert statistics["completions/mean_length"] == 4
