# SPDX-License-Identifier: Apache-2.0
"""Rollouts and scores: the cache, the padding and the shift change nothing."""

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
from rlkern.runs.errors import UserError
from rlkern.trainer.models.policy import hidden_states
from rlkern.trainer.rollout.sampler import Sampling, sample
from rlkern.trainer.rollout.text import Prompts, encode, stop_tokens, texts

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def row_logprob(policy, prompt, completion):
    """Returns log-probabilities from one forward pass over one row without padding or cache."""
    row = torch.tensor([prompt + completion])
    with torch.no_grad():
        logprob = policy.model(input_ids=row).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return torch.stack([logprob[p, t] for p, t in zip(places, completion)])


def each_row(rollout):
    for b in range(rollout.token.shape[0]):
        prompt = rollout.prompt[b // rollout.group_size]
        prompt = prompt[rollout.prompt_mask[b // rollout.group_size]].tolist()
        yield b, prompt, rollout.token[b][rollout.mask[b]].tolist()


def test_rollout_logprob_is_that_of_a_full_forward_pass_over_each_row_alone(policy):
    rollout = ragged_rollout(policy)
    assert len(set(rollout.mask.sum(1).tolist())) > 1, "the rows must have different lengths"
    for b, prompt, completion in each_row(rollout):
        expected = row_logprob(policy, prompt, completion)
        found = rollout.rollout_logprob[b, : len(completion)]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_scored_logits_belong_to_the_token_at_the_same_place(policy, share):
    rollout = ragged_rollout(policy)
    found = score(policy, rollout, share=share)
    for b, prompt, completion in each_row(rollout):
        expected = row_logprob(policy, prompt, completion)
        torch.testing.assert_close(found[b, : len(completion)], expected, rtol=1e-4, atol=1e-5)


def test_sharing_prompts_gives_the_gradient_of_whole_rows(policy):
    rollout = ragged_rollout(policy)
    advantage = torch.linspace(-1, 1, rollout.token.shape[0])
    gradients = []
    for share in (True, False):
        logits = policy.head.logits(hidden_states(policy, rollout, share_prompts=share))
        loss = rlkern.policy_loss(logits, rollout.token, advantage, rollout.mask).loss
        gradients.append(torch.autograd.grad(loss, list(policy.model.parameters())))
    for shared, whole in zip(*gradients):
        assert whole.abs().max() > 0
        torch.testing.assert_close(shared, whole, rtol=1e-3, atol=1e-6)


def test_more_padding_on_the_left_does_not_change_a_greedy_completion(policy):
    prompts = ragged_prompts(policy)
    wider = Prompts(
        torch.nn.functional.pad(prompts.token, (5, 0)),
        torch.nn.functional.pad(prompts.mask, (5, 0)),
    )
    found = []
    for one in (prompts, wider):
        greedy = Sampling(5, stop_tokens(policy, ""), temperature=0)
        found.append(sample(policy, one, greedy, group_size=1, uniform=None))
    assert torch.equal(found[0].token, found[1].token)
    torch.testing.assert_close(found[0].rollout_logprob, found[1].rollout_logprob)


def test_the_same_seed_gives_the_same_rollout_and_another_seed_another(policy):
    first, again, other = (ragged_rollout(policy, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.token, again.token)
    assert not torch.equal(first.token, other.token)


def test_nothing_is_counted_after_the_token_that_ends_a_completion(policy):
    rollout = ragged_rollout(policy, group_size=8)
    stop = set(stop_tokens(policy, "").tolist()) | set(policy.tokenizer.encode("7"))
    for _, _, completion in each_row(rollout):
        assert not stop & set(completion[:-1])
        assert completion[-1] in stop or len(completion) == rollout.token.shape[1]


def test_the_temperature_of_the_sampler_is_the_temperature_of_the_score(policy):
    rollout = ragged_rollout(policy, temperature=0.7)
    found = score(policy, rollout, temperature=0.7)
    found = torch.where(rollout.mask, found, 0.0)
    torch.testing.assert_close(found, rollout.rollout_logprob, rtol=1e-4, atol=1e-5)


def test_a_prompt_longer_than_the_context_is_one_sentence(policy):
    with pytest.raises(UserError, match=r"do not fit the model's context of 512"):
        encode(policy, ["1" * 510], max_new_tokens=4)
    with pytest.raises(UserError, match="no token for some of the text '1x'"):
        encode(policy, ["1x"], max_new_tokens=4)


def test_completions_are_text_without_their_end(policy):
    for text in texts(policy, ragged_rollout(policy)):
        assert set(text) <= set("0123456789+=<unkpad>")
        assert "<eos>" not in text
