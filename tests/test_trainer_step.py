# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: the split, the backend and a poisoned batch."""

import dataclasses

import pytest
import torch
from trainer_helpers import (
    addition_task,
    begun,
    changed,
    compiled,  # noqa: F401
    ragged_rollout,
    small,
    small_parts,
    tiny_policy,
)

import rlkern
from rlkern.trainer import losses
from rlkern.trainer.evaluate import Answers
from rlkern.trainer.losses import Objective, PolicyLosses
from rlkern.trainer.models.policy import run_rows
from rlkern.trainer.offline import supervised
from rlkern.trainer.offline.supervised import right_answers, supervise
from rlkern.trainer.online.learner import minibatches
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.text import stop_tokens
from rlkern.trainer.rows import pieces
from rlkern.trainer.show.report import Stopwatch, completion_statistics
from rlkern.trainer.update import Updater, learning_rate, rates, shares

pytestmark = pytest.mark.usefixtures("compiled")
TERMS = {"kl_coef": 0.1, "entropy_coef": 0.01}


def batch_of(policy):
    rows = ragged_rollout(policy)
    old = rows.rollout_logprob + 0.3 * torch.sin(torch.arange(rows.mask.numel())).view(
        rows.mask.shape
    )
    return dataclasses.replace(
        rows,
        advantage=torch.randn(len(rows.token), generator=torch.Generator().manual_seed(0)),
        weight=rlkern.aggregate.token_weight(rows.mask, "sequence_token_mean"),
        anchor_logprob=old,
        ref_logprob=old - 0.1,
    )


def updater_of(policy, settings):
    return Updater(PolicyLosses(policy, settings, Objective.of(settings)), settings, World())


def gradients(settings):
    policy = tiny_policy()
    sums = updater_of(policy, settings).accumulate(batch_of(policy))
    flat = torch.cat([p.grad.flatten() for p in policy.parameters().values()])
    metrics = rlkern.metrics_dict(rlkern.merge_metrics(sums.metrics))
    return sums.loss, flat, metrics, sums.differences


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_the_gradient_does_not_depend_on_the_number_of_micro_batches(tmp_path, count, share):
    whole = small(tmp_path, batch__prompts=4, memory__share_prompts=share, coefficients=TERMS)
    split = changed(whole, batch__micro_batches=count)
    assert len(shares(4, World(), split.batch.micro_batches)) == count
    loss, gradient, metrics, _ = gradients(whole)
    split_loss, split_gradient, split_metrics, _ = gradients(split)
    scale = gradient.abs().max()
    assert scale > 0
    assert (gradient - split_gradient).abs().max() <= 1e-5 * scale
    torch.testing.assert_close(loss, split_loss, rtol=1e-5, atol=1e-6)
    assert metrics == pytest.approx(split_metrics, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("loss", ["linear", "fused"])
def test_fused_and_eager_losses_give_the_same_gradient(tmp_path, loss):
    fused = gradients(small(tmp_path, loss__path=loss, coefficients=TERMS))
    eager = gradients(small(tmp_path, loss__path="eager", coefficients=TERMS))
    torch.testing.assert_close(fused[0], eager[0], rtol=1e-5, atol=1e-6)
    assert (fused[1] - eager[1]).abs().max() <= 1e-5 * eager[1].abs().max()
    assert fused[2] == pytest.approx(eager[2], rel=1e-4, abs=1e-5)


def test_comparing_with_eager_changes_no_gradient_and_finds_rounding_only(tmp_path):
    plain = gradients(small(tmp_path))
    compared = gradients(small(tmp_path, loss__compare="eager"))
    assert torch.equal(plain[1], compared[1])
    assert set(compared[3]) == {"compare/loss_difference", "compare/grad_norm_difference"}
    assert max(compared[3].values()) < 1e-5


def altered(change):
    """Returns run_rows with other hidden states."""

    def run(*args, **kwargs):
        found = run_rows(*args, **kwargs)
        return found._replace(states=change(found.states))

    return run


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_hidden_states_that_are_not_finite_skip_the_step_and_leave_the_weights_alone(
    tmp_path, monkeypatch, poison
):
    policy = tiny_policy()
    updater, batch = updater_of(policy, small(tmp_path)), batch_of(policy)
    before = {name: p.detach().clone() for name, p in policy.parameters().items()}
    spoilt = torch.zeros(*batch.token.shape, policy.model.config.hidden_size)
    spoilt[0, 0, 0] = poison
    with monkeypatch.context() as patch:
        patch.setattr(losses, "run_rows", altered(lambda states: states + spoilt))
        result = updater.step(batch, {"policy": 1.0})
    assert result.skipped
    assert all(torch.equal(before[name], p) for name, p in policy.parameters().items())
    result = updater.step(batch, {"policy": 1.0})
    assert not result.skipped
    assert any(not torch.equal(before[name], p) for name, p in policy.parameters().items())


def test_steps_that_are_skipped_are_counted_and_said(tmp_path, monkeypatch):
    parts, learner, updater = begun(small(tmp_path, sft=None, batch__epochs=2), tmp_path)
    monkeypatch.setattr(losses, "run_rows", altered(lambda states: states * torch.nan))
    said = []
    values, _ = learner.step(updater, said.append)
    assert values["skipped_updates"] == 2
    assert "step 1: loss or gradient was not finite, 2 of 2 updates skipped (2 so far)" in said


def test_a_stopwatch_splits_the_time_and_adds_up_what_has_one_name(monkeypatch):
    now = iter((1.0, 3.0, 7.0, 15.0))
    monkeypatch.setattr("rlkern.trainer.show.report.time.perf_counter", lambda: next(now))
    watch = Stopwatch(torch.device("cpu"))
    for name in ("a", "b", "a"):
        watch.lap(name)
    assert watch.seconds == {"time/a": 10.0, "time/b": 4.0}


def test_pieces_cover_every_prompt_once():
    for prompts in range(1, 12):
        for count in range(1, prompts + 1):
            covered = [i for first, last in pieces(prompts, count) for i in range(first, last)]
            assert covered == list(range(prompts))


def test_the_learning_rate_rises_then_falls_to_its_floor(tmp_path):
    settings = small(
        tmp_path, optimizer__lr=1.0, optimizer__warmup=2, steps=10, optimizer__decay__floor=0.1
    )
    found = [learning_rate(settings, update, 10) for update in range(11)]
    assert found[:2] == [0.5, 1.0]
    assert found[2:] == sorted(found[2:], reverse=True)
    assert found[10] == pytest.approx(0.1)


def test_the_learning_rate_of_the_policy_waits_for_its_critic(tmp_path):
    settings = small(
        tmp_path, algorithm="a2c", critic__warmup=2, optimizer__warmup=4, batch__minibatches=2
    )
    found = [rates(settings, update) for update in range(12)]
    assert [r["critic"] for r in found[:5]] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [r["policy"] for r in found[4:9]] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_supervised_start_ends_at_its_target(tmp_path, monkeypatch):
    parts, found = small_parts(tmp_path, sft__steps=40, sft__target=0.5), []

    def answer(*_, **__):
        done = parts.progress.supervised
        return Answers([], torch.tensor([[done / 40]], dtype=torch.float64))

    monkeypatch.setattr(supervised, "answer", answer)
    supervise(
        parts, parts.settings.sft, None, None, after_step=lambda _, loss, __: found.append(loss)
    )
    assert len(found) == 19, "the 20th step reaches it"
    assert found[-1] < found[0]


def test_minibatches_visit_every_prompt_once_an_epoch_in_an_order_of_the_seed():
    def orders(seed):
        generator = torch.Generator().manual_seed(seed)
        return [x.tolist() for x in minibatches(8, 2, 3, generator)]

    steps = orders(0)
    assert len(steps) == 6
    assert sorted(sum(steps[:3], [])) == sorted(sum(steps[3:], [])) == list(range(8))
    assert steps[:3] != steps[3:] and steps == orders(0) != orders(1)


def test_a_minibatch_has_the_weights_of_its_own_tokens(tmp_path, monkeypatch):
    given = small(tmp_path, algorithm="dapo", sft=None, groups="all", batch__minibatches=2)
    parts, learner, updater = begun(given, tmp_path / "run")
    steps, real = [], updater.step

    def step(rows, *rest, **named):
        steps.append(rows)
        return real(rows, *rest, **named)

    monkeypatch.setattr(updater, "step", step)
    learner.step(updater, lambda sentence: None)
    assert [part.prompts for part in steps] == [2, 2]
    for part in steps:
        assert part.weight.sum().item() == pytest.approx(1.0)
        assert torch.equal(part.weight > 0, part.mask)


def test_prompts_that_are_taken_bring_what_is_known_of_their_answers():
    batch = batch_of(tiny_policy())
    part, rows = batch.take(torch.tensor([2, 0])), [6, 7, 8, 0, 1, 2]
    assert torch.equal(part.token, batch.token[rows])
    assert torch.equal(part.advantage, batch.advantage[rows])


def test_right_answers_become_rows_that_end_with_eos():
    policy, task = tiny_policy(), addition_task()
    rows = right_answers(policy, task.held_out[:3], task)
    assert rows.token[:, -1].tolist() == [policy.tokenizer.eos_token_id] * 3
    statistics = completion_statistics(rows, stop_tokens(policy, ""))
    assert statistics["completions/clipped_ratio"] == 0
    assert statistics["completions/mean_length"] == 4
