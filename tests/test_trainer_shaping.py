# SPDX-License-Identifier: Apache-2.0
"""What is added to a reward, what the loss leaves out, and who sets the KL's coefficient."""

import dataclasses

import pytest
import torch
from trainer_helpers import small

import rlkern
from rlkern.trainer import Config, UserError, session
from rlkern.trainer.online.experience import Experience
from rlkern.trainer.online.shaping import (
    check_shaping,
    finished,
    make_controller,
    mean_kl,
    objective_metrics,
    overlong_cache,
    shaped_reward,
    trained_mask,
)
from rlkern.trainer.reward import Scored
from rlkern.trainer.rollout.data import Prompts, Rollout
from rlkern.trainer.settings import resolve

NAN = float("nan")
STOP = torch.tensor([1])
# The second answer was cut off; the third wrote a stop token at the end of its first turn, was
# answered, and was then cut off; the fourth ended.
TOKEN = torch.tensor([[5, 1, 0, 0], [5, 5, 5, 5], [1, 5, 5, 5], [5, 5, 5, 1]])
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]).bool()


@dataclasses.dataclass
class Declared:
    """What of an algorithm shaping looks at."""

    name: str = "some"
    reward_terms: tuple = ()
    needs: tuple = ()


def rollout():
    prompts = Prompts(torch.zeros(2, 1).long(), torch.ones(2, 1).bool())
    return Rollout(prompts, TOKEN, MASK, torch.zeros(4, 4), present=torch.ones(4, 4).bool())


def experience(reward, **scores):
    reward = torch.tensor(reward)
    return Experience(rollout(), [], [], Scored(reward, reward[None]), reward, **scores)


def refused(config, declared, *, longest=100):
    with pytest.raises(UserError) as caught:
        check_shaping(resolve(config), declared, longest=longest)
    return str(caught.value)


def test_answers_that_ended_are_told_from_those_that_were_cut_off():
    assert finished(rollout(), STOP).tolist() == [True, False, False, True]


def test_the_filter_leaves_cut_off_answers_out_of_the_loss_and_nothing_else():
    assert torch.equal(trained_mask(rollout(), STOP, settings()), MASK)
    kept = trained_mask(rollout(), STOP, settings(loss__overlong_filter=True))
    assert torch.equal(kept, MASK & torch.tensor([[True], [False], [False], [True]]))
    assert torch.equal(rollout().mask, MASK)


def test_a_punishment_of_long_answers_is_a_fifth_where_asked_for_and_off_elsewhere():
    dapo, plain = Declared(reward_terms=("overlong",)), Declared()
    assert overlong_cache(settings(), dapo, 100) == 20
    assert overlong_cache(settings(), plain, 100) == 0
    assert overlong_cache(settings(reward__overlong_cache=7), plain, 100) == 7
    assert overlong_cache(settings(reward__overlong_cache=0), dapo, 100) == 0
    # One token is no range to punish over: every full answer would get the whole punishment.
    assert overlong_cache(settings(), dapo, 4) == 0


def test_the_punishment_counts_the_models_own_tokens_and_leaves_unscorable_answers_so():
    reward = torch.tensor([1.0, 1.0, 1.0, NAN])
    found = shaped_reward(reward, rollout(), cache=2, longest=4)
    assert found[:3].tolist() == [1.0, 0.0, 0.5] and found[3].isnan()
    assert shaped_reward(reward, rollout(), cache=0, longest=4) is reward


def test_metrics_say_what_the_reward_is_made_of():
    old, ref = torch.full((4, 4), -1.0), torch.full((4, 4), -1.5)
    of = experience(
        [1.0, 0.0, NAN, 1.0], reward_kl_coef=0.1, old_logprob=old.where(MASK, torch.tensor(NAN)),
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
    assert objective_metrics(experience([1.0, 0.0, 1.0, 1.0])) == {}


def test_a_controller_is_fixed_or_follows_its_target():
    fixed = make_controller(settings(reward__kl_coef=0.1))
    moving = make_controller(settings(reward__kl_coef=0.1, reward__adaptive__target=2.0, reward__adaptive__horizon=100.0))
    for controller in (fixed, moving):
        controller.update(kl=60.0, count=50)
    assert fixed.coef == 0.1 and moving.coef == pytest.approx(0.11)


def test_a_kl_in_a_reward_that_has_none_is_refused_with_the_one_that_there_is():
    assert "kl_coef weighs a KL in its loss" in refused(settings(reward__kl_coef=0.1), Declared())
    with_kl = Declared(reward_terms=("kl",))
    check_shaping(resolve(settings(reward__kl_coef=0.1)), with_kl, longest=100)


def test_a_controller_that_cannot_move_is_refused():
    with_kl = Declared(reward_terms=("kl",))
    assert "above 0" in refused(settings(reward__adaptive__target=1.0, reward__kl_coef=0.0), with_kl)
    tight = settings(reward__adaptive__target=1.0, reward__kl_coef=0.1, batch__prompts=16, rollout__group_size=8, reward__adaptive__horizon=20.0)
    assert "at least 25.6" in refused(tight, with_kl)


def test_a_punishment_that_cannot_be_is_refused():
    assert "longest answer (100)" in refused(settings(reward__overlong_cache=101), Declared())
    apart = Declared(needs=("several_rewards",))
    assert "on its own" in refused(settings(reward__overlong_cache=10), apart)


def test_a_punishment_beyond_the_tasks_own_answers_is_refused_before_a_model_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(session, "make_policy", lambda *a, **k: pytest.fail("a model is made"))
    with pytest.raises(UserError, match=r"longest answer \(4\), got 9"):
        session.build(small(tmp_path, reward__overlong_cache=9), resume_from=None)


@pytest.mark.parametrize("name", list(rlkern.algorithms()))
def test_every_algorithms_own_settings_are_allowed(name):
    config = resolve(settings(algorithm=name))
    check_shaping(config, rlkern.algorithms()[name], longest=4)
