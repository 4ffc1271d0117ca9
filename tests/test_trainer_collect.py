# SPDX-License-Identifier: Apache-2.0
"""Which groups a step is made of: sampled until they differ, refilled by copies, with baselines."""

import dataclasses
import re

import pytest
import torch
from trainer_helpers import (
    any_algorithm,
    begun,
    compiled,  # noqa: F401
)

import rlkern
from rlkern.trainer import collect
from rlkern.trainer.processes.world import World
from rlkern.trainer.reward.functions import score_completions
from rlkern.trainer.rollout.text import texts

pytestmark = pytest.mark.usefixtures("compiled")


def run_of(tmp_path, algorithm, **changes):
    """Returns a run of eight prompts with four answers each, before its first step."""
    chosen = {
        "batch__prompts": 8,
        "rollout__group_size": 4,
        "reward__functions": "trainer_rewards:starts_with_seven",
        **changes,
    }
    return begun(any_algorithm(tmp_path, algorithm, **chosen), tmp_path / "run")


def weights_of(parts):
    return {key: p.detach().clone() for key, p in parts.parameters().items()}


def mixed(rows):
    return rlkern.sampling.mixed_groups(rows.reward, rows.group)


def silent(sentence):
    # An untrained model does not know how an answer ends.
    assert "were cut off" in sentence


def test_dynamic_sampling_fills_the_batch_with_groups_whose_rewards_differ(tmp_path):
    parts, _, _ = run_of(tmp_path, "grpo", groups="dynamic")
    found, progress = collect.collect(parts, silent), parts.progress
    assert mixed(found).all() and len(found.item) == len(found.text) == 32
    assert progress.sampled_groups > 8, "some groups must have been left out"
    assert progress.useful_groups >= 8
    assert progress.position >= progress.sampled_groups
    reward, _ = score_completions(parts.rewards, found.item, found.text)
    assert torch.equal(reward, found.reward), "texts and rewards must go together"
    assert texts(parts.policy, found) == found.text, "and tokens with them"
    assert [item.prompt for item in found.item[::4]] == [i.prompt for i in found.item[3::4]]


def test_a_batch_that_cannot_be_filled_is_said_and_taken_as_it_is(tmp_path):
    _, learner, updater = run_of(tmp_path, "grpo", groups="dynamic", groups__rounds=1)
    said = []
    values, _ = learner.step(updater, said.append)
    assert 0 < values["sampling/groups_trained"] < 8
    assert "groups had rewards that differ after 1 rounds" in said[0]


def test_short_batches_are_said_the_first_time_and_every_fiftieth(tmp_path):
    parts, _, _ = run_of(tmp_path, "grpo")
    said = []
    for _ in range(101):
        collect._note_short(parts, 3, 1, said.append)
    assert [re.search(r"\((\d+) such", sentence)[1] for sentence in said] == ["1", "50", "100"]


def test_one_step_on_copies_is_one_step_on_weights(tmp_path):
    gradients = []
    for way in ("weight", "copy"):
        parts, learner, updater = run_of(tmp_path, "grpo", groups="duplicate", groups__by=way)
        learner.step(updater, silent)
        assert 0 < parts.progress.useful_groups < parts.progress.sampled_groups
        state = updater.optimizer.state
        gradients.append({k: state[p]["exp_avg"] for k, p in parts.parameters().items()})
    for name, found in gradients[0].items():
        assert (found - gradients[1][name]).abs().max() <= 1e-5 * found.abs().max() + 1e-9


def test_a_step_on_copies_is_not_a_step_on_what_was_sampled(tmp_path):
    found = []
    for way in ("all", "duplicate"):
        _, learner, updater = run_of(tmp_path, "grpo", groups=way, optimizer__lr=1e-2)
        found.append(learner.step(updater, silent)[0]["grad_norm"])
    assert found[0] != pytest.approx(found[1], rel=1e-2)


NOTHING = {"groups": "duplicate", "reward__functions": "trainer_rewards:nothing"}


@pytest.mark.parametrize("way", ["weight", "copy"])
def test_where_no_group_is_mixed_a_refill_takes_no_step(tmp_path, way):
    parts, learner, updater = run_of(tmp_path, "grpo", **NOTHING, groups__by=way)
    before, said = weights_of(parts), []
    values, _ = learner.step(updater, said.append)
    assert "teaches nothing" in said[0] and values["loss"] == 0
    assert all(torch.equal(before[k], p) for k, p in parts.parameters().items())


def test_a_punishment_of_length_does_not_make_a_group_worth_copying(tmp_path):
    parts, learner, updater = run_of(tmp_path, "grpo", **NOTHING, reward__overlong_cache=3)
    before = weights_of(parts)
    learner.step(updater, lambda sentence: None)
    assert all(torch.equal(before[k], p) for k, p in parts.parameters().items())


def test_the_greedy_answer_is_the_baseline_of_its_own_prompt(tmp_path):
    parts, _, _ = run_of(tmp_path, "remax", reward__functions="trainer_rewards:right_digits")
    found = collect.with_baseline(parts, collect.collect(parts, silent))
    items = found.item[::4]
    greedy = collect.generate(parts, parts.policy, items, parts.sampling.greedy(), 1)
    expected = collect.rewarded(parts, items, greedy).reward
    assert torch.equal(found.baseline.view(8, 4), expected[:, None].expand(8, 4))


def test_the_value_of_a_prompt_is_estimated_from_answers_of_the_reference(tmp_path):
    asked = {"advantage__reference_samples": 6, "advantage__optimal_temperature": 0.7}
    parts, _, _ = run_of(tmp_path, "a_star_po", **asked)
    calls, original = [], collect.generate

    def counted(parts, policy, items, sampling, group_size):
        calls.append((policy is parts.reference, group_size))
        return original(parts, policy, items, sampling, group_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "generate", counted)
        found = collect.with_baseline(parts, collect.collect(parts, silent))
    assert calls == [(False, 4), (True, 6)]
    values = found.baseline.view(8, 4)
    assert torch.equal(values, values[:, :1].expand(8, 4))
    assert ((values >= 0) & (values <= 1)).all() and values.unique().numel() > 1


class Told(World):
    """Another process than the main one, which is told that every answer has the reward 7."""

    def in_main(self, function):
        return torch.full((32,), 7.0), torch.full((32, 1), 7.0), 0


def test_another_process_asks_nobody_and_takes_the_rewards_that_it_is_told(tmp_path):
    parts, _, _ = run_of(tmp_path, "grpo")
    rows = collect.collect(parts, silent)
    items = rows.item[:: rows.group_size]
    found = collect.rewarded(dataclasses.replace(parts, world=Told()), items, rows)
    assert found.reward.eq(7).all() and not rows.reward.eq(7).any()
