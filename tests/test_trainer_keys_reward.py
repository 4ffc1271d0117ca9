# SPDX-License-Identifier: Apache-2.0
"""The smallest thing that a key changes, seen in the step that it should steer: from rewards to
advantages."""

import pytest
import torch
from keys_helpers import calls, holds, run_of, step, steps
from trainer_helpers import compiled  # noqa: F401

import rlkern
from rlkern.trainer import collect
from rlkern.trainer.online import learner

pytestmark = pytest.mark.usefixtures("compiled")

TINY = {"batch__prompts": 2, "rollout__group_size": 2}


@holds("reward.functions", "reward.weights")
def test_the_advantage_is_of_the_weighted_sum_of_rewards(tmp_path):
    two = "trainer_rewards:even_digits,trainer_rewards:right_digits"
    run = run_of(tmp_path, reward__functions=two, reward__weights=[0.25, -2.0])
    values, (taken,) = step(run)
    assert {"rewards/even_digits/mean", "rewards/right_digits/mean"} <= {*values}
    even, right = taken.rows.rewards.T
    reward = 0.25 * even - 2.0 * right
    assert even.any() and right.any()
    torch.testing.assert_close(taken.rows.reward, reward)
    expected = rlkern.group_advantage(reward, taken.rows.group)
    torch.testing.assert_close(taken.rows.advantage, expected)


@holds("reward.timeout", "reward.workers")
def test_with_a_time_limit_or_workers_a_call_is_about_one_answer(tmp_path, monkeypatch):
    (tmp_path / "counting_rewards.py").write_text(
        "def count(prompts, completions):\n    n = len(completions)\n    return [float(n)] * n\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    given = {**TINY, "reward__functions": "counting_rewards:count"}
    for changes in ({}, {"reward__timeout": 30.0}, {"reward__workers": 2}):
        values, _ = step(run_of(tmp_path / str(changes), **given, **changes))
        assert values["rewards/count/mean"] == (1.0 if changes else 4.0)
        assert ("rewards/late" in values) is ("reward__timeout" in changes)


@holds("reward.overlong_cache")
def test_a_punishment_of_long_answers_is_in_the_advantage(tmp_path):
    (taken,) = steps(run_of(tmp_path, algorithm="reinforce", reward__overlong_cache=2), 1)
    length = taken.rows.mask.sum(-1)
    punished = (length.clamp(max=4) - 2).clamp(min=0) / 2  # the longest answer has 4 tokens
    assert punished.unique().numel() > 1
    torch.testing.assert_close(taken.rows.shaped_reward, taken.rows.reward - punished)


@holds("reward.kl_coef")
def test_the_kl_to_the_starting_model_is_in_the_reward(tmp_path):
    run = run_of(tmp_path, algorithm="rloo", reward__kl_coef=0.5, batch__minibatches=1,
                 optimizer__lr=1e-2)  # fmt: skip
    _, second = steps(run, 2)
    rows = second.rows
    kl = (rows.old_logprob - rows.ref_logprob).where(rows.mask, 0.0).sum(-1)
    assert kl.abs().max() > 0.05
    expected = rlkern.group_advantage(rows.reward - 0.5 * kl, rows.group, kind="leave_one_out")
    torch.testing.assert_close(rows.advantage, expected)


def kl_of(rows):
    """Returns the mean over answers of Σ(log π_old − log π_ref)."""
    return (rows.old_logprob - rows.ref_logprob).where(rows.mask, 0.0).sum(-1).mean().item()


@holds("reward.adaptive.target", "reward.adaptive.horizon")
def test_the_weight_of_the_kl_moves_as_target_and_horizon_say_and_goes_on_so(tmp_path):
    asked = {"algorithm": "rloo", "reward__kl_coef": 0.1, "batch__minibatches": 1,
             "optimizer__lr": 1e-2}  # fmt: skip
    far = kl_of(steps(run_of(tmp_path / "fixed", **asked), 2)[1].rows)
    assert far > 0.01
    adaptive = {"target": far / 1.1, "horizon": 100.0}
    run = run_of(tmp_path / "steered", **asked, reward__adaptive=adaptive)
    coef = 0.1
    # The first rollout is the starting model's own, and no step is wider than the clip at 0.2.
    for error in (-0.2, 0.1):
        values, (taken,) = step(run)
        assert values["objective/kl_coef"] == pytest.approx(coef)
        assert values["objective/kl"] == pytest.approx(kl_of(taken.rows), rel=1e-4, abs=1e-6)
        coef *= 1 + error * len(taken.rows.token) / 100.0
        assert run.parts.progress.reward_kl_coef == pytest.approx(coef, rel=1e-4)
    again = learner.Online(run.parts)  # as a resume makes it from the saved progress
    values, _ = again.step(run.updater, lambda _: None)
    assert values["objective/kl_coef"] == pytest.approx(coef, rel=1e-4)


@holds("advantage.discount", "advantage.gae_lambda", "advantage.whiten")
@pytest.mark.parametrize("whiten", (False, True))
def test_discount_lambda_and_whitening_reach_the_advantages(tmp_path, monkeypatch, whiten):
    asked = {"discount": 0.9, "gae_lambda": 0.8, "whiten": whiten}
    run = run_of(
        tmp_path, **TINY, algorithm="ppo", advantage=asked, batch__epochs=1, reward__kl_coef=0.0
    )
    value = torch.linspace(-1, 1, 16).view(4, 4)
    monkeypatch.setattr(
        type(run.parts.critic), "values", lambda *_: value[:, : run.parts.sampling.longest]
    )
    (taken,) = steps(run, 1)
    rows, asked = taken.rows, run.parts.settings.advantage
    value = value[:, : rows.token.shape[1]]
    last = rows.mask.sum(-1) - 1
    delta, found = torch.zeros(rows.mask.shape), torch.zeros(rows.mask.shape)
    for b, end in enumerate(last.tolist()):
        carried = 0.0
        for t in range(end, -1, -1):
            ahead = value[b, t + 1].item() if t < end else 0.0
            gain = rows.reward[b].item() if t == end else 0.0
            delta[b, t] = gain + 0.9 * ahead - value[b, t]
            carried = delta[b, t].item() + 0.9 * 0.8 * carried
            found[b, t] = carried
    target = (found + value)[rows.mask]
    kept = found[rows.mask]
    if whiten:
        kept = (kept - kept.mean()) / kept.std()
    torch.testing.assert_close(rows.advantage[rows.mask], kept, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows.value_target[rows.mask], target, rtol=1e-4, atol=1e-4)


@holds("advantage.reference_samples", "advantage.optimal_temperature")
def test_the_value_of_a_prompt_is_of_as_many_answers_and_at_the_temperature_asked_for(
    tmp_path, monkeypatch
):
    run = run_of(
        tmp_path, **TINY, algorithm="a_star_po", advantage__reference_samples=3,
        advantage__optimal_temperature=0.7,
    )  # fmt: skip
    seen = calls(monkeypatch, collect, "rewarded")
    (taken,) = steps(run, 1)
    reward = seen[-1][2].reward.view(2, 3)
    value = 0.7 * (reward / 0.7).exp().mean(-1).log()
    expected = taken.rows.reward - value.repeat_interleave(2)
    torch.testing.assert_close(taken.rows.advantage, expected)
