# SPDX-License-Identifier: Apache-2.0
"""Which groups a step is made of: sampled until they differ, refilled by copies, with baselines."""

import pytest
import torch
from trainer_helpers import (
    any_algorithm,
    compiled,  # noqa: F401
)

import rlkern
from rlkern.trainer.learners import make_learner
from rlkern.trainer.rollout import collect
from rlkern.trainer.session import build
from rlkern.trainer.show.display import Display

pytestmark = pytest.mark.usefixtures("compiled")


def session_of(tmp_path, algorithm, **changes):
    chosen = {
        "batch__prompts": 8,
        "rollout__group_size": 4,
        "reward__functions": "trainer_rewards:starts_with_seven",
        **changes,
    }
    session = build(any_algorithm(tmp_path, algorithm, **chosen), resume_from=None)
    learner = make_learner(session)
    learner.prepare(tmp_path, Display())
    return session, learner


def mixed(experience):
    return rlkern.sampling.mixed_groups(experience.reward, experience.group)


def silent(sentence):
    raise AssertionError(sentence)


def test_dynamic_sampling_fills_the_batch_with_groups_whose_rewards_differ(tmp_path):
    session, _ = session_of(tmp_path, "grpo", sampling="dynamic")
    found = collect.SAMPLING["dynamic"](session, silent)
    assert mixed(found).all() and len(found.items) == len(found.completions) == 32
    assert session.progress.sampled_groups > 8, "some groups must have been left out"
    assert session.progress.useful_groups >= 8
    assert session.progress.position >= session.progress.sampled_groups
    right = collect.score_completions(session.rewards, found.items, found.completions)
    assert torch.equal(right.reward, found.scored.reward), "texts and rewards must go together"
    texts = collect.texts(session.policy, found.rollout)
    assert texts == found.completions, "and tokens with them"
    assert [item.prompt for item in found.items[::4]] == [i.prompt for i in found.items[3::4]]


def test_a_batch_that_cannot_be_filled_is_said_and_taken_as_it_is(tmp_path):
    session, learner = session_of(tmp_path, "grpo", sampling="dynamic", sampling_rounds=1)
    said = []
    values, _ = learner.iterate(said.append)
    assert 0 < values["sampling/groups_trained"] < 8
    assert "groups had rewards that differ after 1 rounds" in said[0]


def test_one_step_on_copies_is_one_step_on_weights(tmp_path):
    gradients = []
    for way in ("weight", "copy"):
        session, learner = session_of(tmp_path, "grpo", sampling="duplicate", duplicate_by=way)
        learner.iterate(silent)
        assert 0 < session.progress.useful_groups < session.progress.sampled_groups
        state = session.optimizer.state
        gradients.append({k: state[p]["exp_avg"] for k, p in session.parameters().items()})
    for name, found in gradients[0].items():
        assert (found - gradients[1][name]).abs().max() <= 1e-5 * found.abs().max() + 1e-9


def test_a_step_on_copies_is_not_a_step_on_what_was_sampled(tmp_path):
    found = []
    for way in ("all", "duplicate"):
        session, learner = session_of(tmp_path, "grpo", sampling=way, lr=1e-2)
        found.append(learner.iterate(silent)[0]["grad_norm"])
    assert found[0] != pytest.approx(found[1], rel=1e-2)


def test_where_no_group_is_mixed_a_refill_takes_no_step(tmp_path):
    for way in ("weight", "copy"):
        session, learner = session_of(
            tmp_path,
            "grpo",
            sampling="duplicate",
            duplicate_by=way,
            reward="trainer_rewards:nothing",
        )
        before = {k: p.detach().clone() for k, p in session.parameters().items()}
        said = []
        values, _ = learner.iterate(said.append)
        assert "teaches nothing" in said[0] and values["loss"] == 0
        assert all(torch.equal(before[k], p) for k, p in session.parameters().items())


def test_a_punishment_of_length_does_not_make_a_group_worth_copying(tmp_path):
    session, learner = session_of(
        tmp_path,
        "grpo",
        sampling="duplicate",
        overlong_cache=3,
        reward="trainer_rewards:nothing",
    )
    before = {k: p.detach().clone() for k, p in session.parameters().items()}
    learner.iterate(lambda sentence: None)
    assert all(torch.equal(before[k], p) for k, p in session.parameters().items())


def test_the_greedy_answer_is_the_baseline_of_its_own_prompt(tmp_path):
    session, _ = session_of(tmp_path, "remax", reward="trainer_rewards:right_digits")
    found = collect.with_baselines(session, collect.every_group(session, silent))
    items = found.items[::4]
    greedy = collect.generate(session, session.policy, items, session.sampling.greedy(), 1)
    expected = collect.rewarded(session, items, greedy).reward
    assert torch.equal(found.greedy_reward.view(8, 4), expected[:, None].expand(8, 4))


def test_the_value_of_a_prompt_is_estimated_from_answers_of_the_reference(tmp_path):
    session, _ = session_of(tmp_path, "a_star_po", reference_samples=6, optimal_temperature=0.7)
    asked = []
    original = collect.generate

    def counted(session, policy, items, sampling, group_size):
        asked.append((policy is session.reference, group_size))
        return original(session, policy, items, sampling, group_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "generate", counted)
        found = collect.with_baselines(session, collect.every_group(session, silent))
    assert asked == [(False, 4), (True, 6)]
    values = found.optimal_value.view(8, 4)
    assert torch.equal(values, values[:, :1].expand(8, 4))
    assert ((values >= 0) & (values <= 1)).all() and values.unique().numel() > 1
