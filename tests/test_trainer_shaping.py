# SPDX-License-Identifier: Apache-2.0
"""What is added to a reward, what the loss leaves out, and who sets the KL's coefficient."""

import pytest
import torch
from trainer_helpers import asked, changed, loaded, settings, small

import rlkern
from rlkern.trainer import UserError, build
from rlkern.trainer.online.advantages import Rewarded
from rlkern.trainer.online.shaping import (
    check_overlong,
    make_controller,
    mean_kl,
    objective_metrics,
    overlong_cache,
    shaped,
    trained_mask,
)
from rlkern.trainer.rows import Rows, finished

NAN = float("nan")
STOP = torch.tensor([1])
# The second answer was cut off; the third wrote a stop token at the end of its first turn, was
# answered, and was then cut off; the fourth ended.
TOKEN = torch.tensor([[5, 1, 0, 0], [5, 5, 5, 5], [1, 5, 5, 5], [5, 5, 5, 1]])
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]).bool()


def rollout(**scores):
    return Rows(
        prompt=torch.zeros(2, 1).long(),
        prompt_mask=torch.ones(2, 1).bool(),
        token=TOKEN,
        mask=MASK,
        present=torch.ones(4, 4).bool(),
        rollout_logprob=torch.zeros(4, 4),
        **scores,
    )


def rewarded(reward, kl_coef=0.0, **scores):
    reward = torch.tensor(reward)
    rows = rollout(reward=reward, rewards=reward[:, None], shaped_reward=reward, **scores)
    return Rewarded(rows, kl_coef, settings())


def refused(**changes):
    with pytest.raises(UserError) as caught:
        settings(**changes)
    return str(caught.value)


def test_answers_that_ended_are_told_from_those_that_were_cut_off():
    assert finished(rollout(), STOP).tolist() == [True, False, False, True]


def test_the_filter_leaves_cut_off_answers_out_of_the_loss_and_nothing_else():
    assert torch.equal(trained_mask(rollout(), STOP, settings()), MASK)
    kept = trained_mask(rollout(), STOP, settings(loss__overlong_filter=True))
    assert torch.equal(kept, MASK & torch.tensor([[True], [False], [False], [True]]))
    assert torch.equal(rollout().mask, MASK)


def test_a_punishment_of_long_answers_is_a_fifth_where_asked_for_and_off_elsewhere():
    punishing = [a.name for a in rlkern.algorithms().values() if "overlong" in a.reward_terms]
    assert punishing
    for name in punishing:
        assert overlong_cache(settings(algorithm=name), 100) == 20
        assert overlong_cache(settings(algorithm=name, reward__overlong_cache=0), 100) == 0
        # One token is no range to punish over: every full answer would get the whole punishment.
        assert overlong_cache(settings(algorithm=name), 4) == 0
    assert overlong_cache(settings(), 100) == 0
    assert overlong_cache(settings(reward__overlong_cache=7), 100) == 7


def test_the_punishment_counts_the_models_own_tokens_and_leaves_unscorable_answers_so():
    rows = rollout(reward=torch.tensor([1.0, 1.0, 1.0, NAN]))
    found = shaped(rows, settings(reward__overlong_cache=2), longest=4)
    assert found.shaped_reward[:3].tolist() == [1.0, 0.0, 0.5] and found.shaped_reward[3].isnan()
    assert found.reward is rows.reward
    assert shaped(rows, settings(), longest=4).shaped_reward is rows.reward


def test_metrics_say_what_the_reward_is_made_of():
    old, ref = torch.full((4, 4), -1.0), torch.full((4, 4), -1.5)
    of = rewarded(
        [1.0, 0.0, NAN, 1.0], 0.1, old_logprob=old.where(MASK, torch.tensor(NAN)),
        ref_logprob=ref,
    )  # fmt: skip
    # ½ for each of 2 + 4 + 3 + 4 tokens, so 13/8 an answer, and a surprise of 13/4.
    assert objective_metrics(of) == pytest.approx(
        {
            "objective/kl": 1.625,
            "objective/entropy": 3.25,
            "objective/non_score_reward": -0.1625,
            "objective/rlhf_reward": (0.9 - 0.2 + 0.8) / 3,
            "objective/scores": 2 / 3,
            "objective/kl_coef": 0.1,
        }
    )
    assert mean_kl(of) == pytest.approx(1.625)
    assert objective_metrics(rewarded([1.0, 0.0, 1.0, 1.0])) == {}


def test_a_controller_is_fixed_or_follows_its_target():
    fixed = settings(algorithm="rloo", reward__kl_coef=0.1)
    moving = changed(fixed, reward__adaptive__target=2.0, reward__adaptive__horizon=100.0)
    controllers = [make_controller(one, 0.1) for one in (fixed, moving)]
    for controller in controllers:
        controller.update(kl=60.0, count=50)
    assert controllers[0].coef == 0.1 and controllers[1].coef == pytest.approx(0.11)


def test_a_controller_goes_on_from_the_weight_that_a_checkpoint_has():
    moving = settings(algorithm="rloo", reward__kl_coef=0.1, reward__adaptive=2.0)
    assert [make_controller(moving, coef).coef for coef in (0.1, 0.7)] == [0.1, 0.7]


def test_a_kl_in_a_reward_that_has_none_is_refused_with_the_one_that_there_is():
    assert "(coefficients.kl_coef weighs one in the loss)" in refused(reward__kl_coef=0.1)
    assert settings(algorithm="rloo", reward__kl_coef=0.1).reward.kl_coef == 0.1


def test_a_controller_that_cannot_move_is_refused():
    steered = {"algorithm": "rloo", "reward__adaptive__target": 1.0}
    assert "above 0" in refused(**steered, reward__kl_coef=0.0)
    tight = {"batch__prompts": 16, "rollout__group_size": 8, "reward__adaptive__horizon": 20.0}
    assert "at least 25.6" in refused(**steered, reward__kl_coef=0.1, **tight)
    assert 25.6 == pytest.approx(128 * rlkern.AdaptiveKl(0.1, target=1.0, horizon=1e4).clip)


def test_a_punishment_that_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"longest answer \(100\), got 101"):
        check_overlong(settings(reward__overlong_cache=101), 100)
    check_overlong(settings(reward__overlong_cache=100), 100)
    apart = {"algorithm": "gdpo", "reward__functions": "a,b"}
    assert "learn from the sum of their rewards" in refused(reward__overlong_cache=10, **apart)


def test_a_punishment_beyond_the_tasks_own_answers_is_refused_before_a_model_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(build, "make_policy", lambda *a, **k: pytest.fail("a model is made"))
    with pytest.raises(UserError, match=r"longest answer \(4\), got 9"):
        loaded(small(tmp_path, reward__overlong_cache=9))


@pytest.mark.parametrize("name", list(rlkern.algorithms()))
def test_every_algorithms_own_settings_are_allowed(name):
    own = settings(algorithm=name, **asked(name))
    check_overlong(own, 4)
