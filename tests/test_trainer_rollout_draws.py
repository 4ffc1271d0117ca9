# SPDX-License-Identifier: Apache-2.0
"""What is drawn, what top-k and top-p leave, and rollouts cut, joined and padded."""

import dataclasses
import re

import pytest
import torch
from rollout_helpers import score
from trainer_helpers import (
    compiled,  # noqa: F401
    ragged_prompts,
    ragged_rollout,
    tiny_policy,
)

import rlkern
from rlkern.trainer.models.policy import hidden_states
from rlkern.trainer.rollout.drawing import draw
from rlkern.trainer.rollout.sampler import Sampling, next_logprob, random_numbers, sample
from rlkern.trainer.rollout.text import Prompts, stop_tokens
from rlkern.trainer.rows import Rows, joined

pytestmark = pytest.mark.usefixtures("compiled")
STOP = torch.tensor([1])


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def scored(policy, rollout, *, share=True, temperature=1.0):
    found = score(policy, rollout, share=share, temperature=temperature)
    return torch.where(rollout.mask, found, 0.0)


def assert_same(found, expected):
    """Holds what two rollouts say of their rows, whatever their padding."""
    assert torch.equal(found.mask.sum(1), expected.mask.sum(1))
    for name in ("token", "rollout_logprob"):
        a, b = getattr(found, name)[found.mask], getattr(expected, name)[expected.mask]
        torch.testing.assert_close(a, b)


def test_draws_have_the_probabilities_of_their_tokens():
    logprob = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).log()
    number = (torch.arange(1000).double() + 0.5) / 1000
    found = draw(logprob.expand(1000, -1), number)
    assert torch.bincount(found, minlength=4).tolist() == [100, 0, 600, 300]


def test_the_smallest_and_the_largest_number_never_draw_an_impossible_token():
    probability = torch.tensor([[0.0, 0.3, 0.3, 0.4, 0.0], [0.0, 0.1, 0.7, 0.2, 0.0]])
    last = 1 - 2.0**-53
    for number, expected in ((0.0, [1, 1]), (last, [3, 3])):
        found = draw(probability.log(), torch.tensor([number] * 2, dtype=torch.float64))
        assert found.tolist() == expected
    many = torch.randn(2000, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    many[:, 5:] = -torch.inf
    found = draw(many, torch.full((2000,), last, dtype=torch.float64))
    assert found.tolist() == [4] * 2000


def test_a_sampled_batch_is_the_same_in_one_piece_and_in_two(policy):
    prompts, sampling = ragged_prompts(policy), Sampling(6, stop_tokens(policy, ""))
    uniform = random_numbers(torch.Generator().manual_seed(3), 8, sampling)
    whole = sample(policy, prompts, sampling, group_size=2, uniform=uniform)
    parts = [
        sample(
            policy,
            Prompts(prompts.token[first:last], prompts.mask[first:last]),
            sampling,
            group_size=2,
            uniform=uniform[2 * first : 2 * last],
        )
        for first, last in ((0, 1), (1, 4))
    ]
    found = joined(parts)
    assert found.prompt.shape == prompts.token.shape
    assert_same(found, whole)


def test_top_k_comes_before_top_p_and_equally_likely_tokens_by_their_ids():
    logits = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2]]).log()
    kept = next_logprob(logits, Sampling(1, STOP, top_k=3)).exp()
    torch.testing.assert_close(kept, torch.tensor([[1, 1, 1, 0, 0]]) / 3)
    # Of the three thirds, two reach 0.6; of five fifths, three would.
    kept = next_logprob(logits, Sampling(1, STOP, top_k=3, top_p=0.6)).exp()
    torch.testing.assert_close(kept, torch.tensor([[1, 1, 0, 0, 0]]) / 2)


def test_top_p_stops_at_the_token_that_reaches_it():
    kept = next_logprob(torch.zeros(1, 4), Sampling(1, STOP, top_p=0.5)).exp()
    assert kept.tolist() == [[0.5, 0.5, 0, 0]]


def test_temperature_comes_before_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    hot = next_logprob(logits, Sampling(1, STOP, temperature=100.0, top_p=0.6))
    cold = next_logprob(logits, Sampling(1, STOP, temperature=0.1, top_p=0.6))
    assert (hot > -torch.inf).tolist() == [[True, True, False]]
    assert (cold > -torch.inf).tolist() == [[True, False, False]]


def test_what_is_kept_agrees_with_transformers(policy):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    scores = logits
    for rule in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(7), TopPLogitsWarper(0.7)):
        scores = rule(None, scores)
    found = next_logprob(logits, Sampling(1, STOP, temperature=0.8, top_k=7, top_p=0.7))
    torch.testing.assert_close(found, scores.log_softmax(-1))


@pytest.mark.parametrize(
    "rule", [{"top_k": 1}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 6, "top_p": 0.5}]
)
@pytest.mark.parametrize("share", [True, False])
def test_scores_over_the_kept_set_are_those_of_the_sampler(policy, rule, share):
    rollout = ragged_rollout(policy, temperature=0.8, **rule)
    found = scored(policy, rollout, share=share, temperature=0.8)
    torch.testing.assert_close(found, rollout.rollout_logprob, rtol=1e-4, atol=1e-5)
    whole = dataclasses.replace(rollout, keep=None)
    assert (scored(policy, whole, temperature=0.8) < rollout.rollout_logprob - 0.1).any()


def test_every_counted_token_is_one_of_the_kept_ids_that_stand_in_order(policy):
    rollout = ragged_rollout(policy, top_p=0.6)
    B, T, K = rollout.keep.shape
    assert (rollout.keep == rollout.token[..., None]).any(-1)[rollout.mask].all()
    assert (rollout.keep[~rollout.mask] == -1).all()
    sizes = (rollout.keep >= 0).sum(-1)
    assert sizes[rollout.mask].min() < K == sizes.max(), "some rows must keep fewer than others"
    for ids in rollout.keep[rollout.mask].tolist():
        kept = [i for i in ids if i >= 0]
        assert kept == sorted(set(kept)) and ids[len(kept) :] == [-1] * (K - len(kept))


def test_greedy_answers_have_no_kept_set(policy):
    stop = stop_tokens(policy, "")
    rule = Sampling(4, stop, top_k=2, top_p=0.5).greedy()
    assert sample(policy, ragged_prompts(policy), rule, group_size=1, uniform=None).keep is None


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("multiple", [4, 16])
def test_padding_to_a_multiple_changes_no_score_and_no_gradient(policy, share, multiple):
    rollout = ragged_rollout(policy, top_k=5)
    padded = rollout.padded(multiple)
    assert padded.prompt.shape[1] % multiple == padded.token.shape[1] % multiple == 0
    assert padded.token.shape[1] > rollout.token.shape[1]
    assert torch.equal(padded.present.sum(1), rollout.present.sum(1))
    width = rollout.token.shape[1]
    expected = scored(policy, rollout, share=share)
    torch.testing.assert_close(scored(policy, padded, share=share)[:, :width], expected)
    gradients = []
    for one in (rollout, padded):
        hidden = hidden_states(policy, one, share_prompts=share)
        loss = rlkern.policy_loss(
            policy.head.logits(hidden),
            one.token,
            torch.linspace(-1, 1, 12),
            one.mask,
            keep=one.keep,
        ).loss
        gradients.append(torch.autograd.grad(loss, list(policy.model.parameters())))
    for found, wanted in zip(*gradients):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_rollout_that_fits_is_not_padded(policy):
    rollout = ragged_rollout(policy)
    assert rollout.padded(1) is rollout


def test_prompts_that_are_taken_bring_their_completions(policy):
    rollout = ragged_rollout(policy)
    groups = rollout.take(torch.tensor([2, 0, 0]))
    assert groups.group_size == rollout.group_size == 3
    assert torch.equal(groups.prompt, rollout.prompt[[2, 0, 0]])
    rows = [6, 7, 8, 0, 1, 2, 0, 1, 2]
    assert torch.equal(groups.rollout_logprob, rollout.rollout_logprob[rows])


def test_joined_rollouts_score_as_each_alone(policy):
    first, second = ragged_rollout(policy, top_k=4), ragged_rollout(policy, seed=1)
    narrow = second.piece(0, 1)
    both = joined([first, narrow])
    alone = [r.rollout_logprob[r.mask] for r in (first, narrow)]
    torch.testing.assert_close(both.rollout_logprob[both.mask], torch.cat(alone))
    torch.testing.assert_close(scored(policy, both), both.rollout_logprob, rtol=1e-4, atol=1e-5)


def test_everything_that_tokens_have_is_padded_with_them(policy):
    rows = ragged_rollout(policy)
    names = re.findall(r"^    (\w+) .*\(B, T\)", Rows.__doc__, re.MULTILINE)
    more = {name: torch.ones(rows.token.shape) for name in names if getattr(rows, name) is None}
    assert {"correction", "value_target", "advantage"} <= more.keys()
    wide = dataclasses.replace(rows, **more).widened(rows.prompt.shape[1], rows.token.shape[1] + 2)
    shapes = {name: getattr(wide, name).shape for name in names}
    assert shapes == dict.fromkeys(names, (rows.token.shape[0], rows.token.shape[1] + 2))


@pytest.mark.parametrize("share", [True, False])
def test_tokens_that_do_not_count_are_read_all_the_same(policy, share):
    rollout = ragged_rollout(policy)
    holes = rollout.mask.clone()
    holes[:, 1] = False
    other = dataclasses.replace(rollout, mask=holes)
    expected = torch.where(holes, scored(policy, rollout, share=share), 0.0)
    torch.testing.assert_close(scored(policy, other, share=share), expected)
    absent = dataclasses.replace(rollout, mask=holes, present=holes)
    assert not torch.allclose(scored(policy, absent, share=share), expected)
