# SPDX-License-Identifier: Apache-2.0
"""Held-out accuracy and pass@k: what is counted, and what must not change it."""

import dataclasses
import itertools

import pytest
import torch
from trainer_helpers import addition_task, small, small_parts, tiny_policy

from rlkern.trainer.evaluate import Answers, answer, pass_at_k, standard_error, task_accuracies
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.sampler import Sampling
from rlkern.trainer.rollout.text import stop_tokens


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def lenient(task):
    """Returns the task with a score that an untrained model reaches half of the time."""

    def score(text, item):
        return float(text[:1] in "01234")

    return dataclasses.replace(task, score=score)


def answers(policy, config, *, samples=4, world=None, temperature=1.0, items=10):
    task = lenient(addition_task())
    sampling = Sampling(3, stop_tokens(policy, ""), temperature=temperature)
    return answer(
        policy, task, task.held_out[:items], sampling, config, samples=samples, world=world
    )


def accuracies(tmp_path, **changes):
    """Returns what an untrained run measures of answers of three tokens to lenient items."""
    parts = small_parts(tmp_path, rollout__max_new_tokens=3, **changes)
    return task_accuracies(dataclasses.replace(parts, task=lenient(parts.task)))


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 4), (3, 1, 3)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_answer(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-15)


def test_pass_at_1_is_the_sampled_accuracy_and_more_answers_pass_more_often(tmp_path):
    found = accuracies(tmp_path, eval__samples=4, eval__pass_at=[1, 2, 4])
    assert found["eval/pass@1"] == pytest.approx(found["eval/accuracy_sampled"], abs=1e-12)
    assert found["eval/pass@1"] < found["eval/pass@2"] < found["eval/pass@4"] < 1
    assert next(iter(found)) == "eval/accuracy"
    assert found["eval/accuracy"] == found["eval/accuracy_sampled"]


def test_the_first_mode_is_the_accuracy_and_modes_left_out_are_not_run(tmp_path):
    found = accuracies(tmp_path, eval__modes=["greedy"])
    assert set(found) == {"eval/accuracy", "eval/accuracy_greedy"}


@pytest.mark.parametrize("batch", [1, 3, 7, 40])
def test_the_size_of_a_batch_does_not_change_an_answer(policy, tmp_path, batch):
    whole = answers(policy, small(tmp_path, eval__batch=1000))
    split = answers(policy, small(tmp_path, eval__batch=batch))
    assert split.text == whole.text
    assert torch.equal(split.score, whole.score)
    assert 0 < whole.score.mean() < 1


@dataclasses.dataclass(frozen=True)
class Half(World):
    """One of two processes, whose talk is done by hand."""

    def gather(self, value):
        return [value]


@pytest.mark.parametrize("items", [1, 7])
def test_two_processes_give_the_answers_of_one(policy, tmp_path, items):
    config = small(tmp_path)
    whole = answers(policy, config, items=items)
    halves = [answers(policy, config, items=items, world=Half(rank, 2)) for rank in (0, 1)]
    assert halves[0].text + halves[1].text == whole.text
    assert halves[0].score.flatten().tolist() + halves[1].score.flatten().tolist() == (
        whole.score.flatten().tolist()
    )


def test_evaluating_leaves_the_random_state_of_training_alone(policy, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = answers(policy, small(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    assert answers(policy, small(tmp_path)).text == first.text
    assert answers(policy, small(tmp_path, seed=1)).text != first.text


def test_samples_of_one_item_differ_and_greedy_answers_do_not(policy, tmp_path):
    assert any(len(set(row)) > 1 for row in answers(policy, small(tmp_path)).text)
    greedy = answers(policy, small(tmp_path), temperature=0.0)
    assert all(len(set(row)) == 1 for row in greedy.text)


def test_the_standard_error_is_of_items_and_not_of_samples():
    found = Answers([], torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    assert standard_error(found.accuracy()) == pytest.approx((1 / 3) ** 0.5 / 2)
