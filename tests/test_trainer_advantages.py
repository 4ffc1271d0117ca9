# SPDX-License-Identifier: Apache-2.0
"""Advantages that the trainer makes of rewarded answers, against numbers made by hand."""

import pytest
import torch
from trainer_helpers import asked, settings

import rlkern
from rlkern.trainer.online.advantages import TABLE, Rewarded, with_advantage
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings.reads import DEVIATING

NAN = float("nan")
EVERY = pytest.mark.parametrize("name", sorted(TABLE))
# Two prompts of two answers. The second answer has a hole, such as a tool's reply.
MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()


# Algorithms that read what an advantage over tokens does; the others need no key of their own.
READERS = {"gae": "a2c", "reinforce_plus_plus": "reinforce_plus_plus"}
GREEDY, OPTIMAL = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.75, 0.75, 0.25, 0.25])


def answers(reward, *, mask=MASK, **scores):
    """Returns answers with these rewards, and junk in the masked places of all scores."""
    reward = torch.tensor(reward)
    count = len(reward)
    present = mask.flip(-1).cumsum(-1).flip(-1) > 0
    by_function = torch.tensor(scores.pop("by_function", [reward.tolist()]))
    # What lies in masked places may be anything: a number here, none at the end of the rows.
    junk = torch.where(present, torch.arange(1.0, mask.numel() + 1).view(mask.shape), NAN)
    kept = {
        key: torch.where(mask, x, sign * junk)
        for sign, (key, x) in zip((9.0, -9.0, 1.0), scores.items(), strict=False)
        if x.ndim == 2
    }
    return Rows(
        prompt=torch.zeros(count // 2, 1).long(),
        prompt_mask=torch.ones(count // 2, 1).bool(),
        token=torch.zeros(mask.shape).long(),
        mask=mask,
        present=present,
        rollout_logprob=torch.zeros(mask.shape),
        reward=reward,
        rewards=by_function.T,
        shaped_reward=reward,
        **{**scores, **kept},
    )


def full(reward, **changes):
    """Returns answers with everything that any estimator reads."""
    scores = {
        "old_logprob": torch.full(MASK.shape, -1.0),
        "ref_logprob": torch.full(MASK.shape, -1.5),
        "value": torch.full(MASK.shape, 0.25),
        "teacher_logprob": torch.full(MASK.shape, -0.75),
        "baseline": GREEDY,
        **changes,
    }
    return answers(reward, **scores)


def estimate(name, rows, kl_coef=0.0, **changes):
    """Returns (advantage, value_target) by the name that a declaration gives an advantage."""
    own = settings(algorithm=READERS.get(name, "grpo"), **changes)
    return TABLE[name](Rewarded(rows, kl_coef, own))


def advantage(name, rows, kl_coef=0.0, **changes):
    return estimate(name, rows, kl_coef, **changes)[0]


def token_reward(rows, kl_coef=0.0):
    return Rewarded(rows, kl_coef, settings()).token_reward()


def sequence_reward(rows, kl_coef=0.0):
    return Rewarded(rows, kl_coef, settings()).sequence_reward()


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_a_token_reward_has_the_answer_at_its_last_token_and_the_kl_at_each():
    of = full([1.0, 0.0, 1.0, 2.0])  # log ratio ½ at each counted token
    expected = [[-0.05, 0.95, 0, 0], [-0.05, 0, -0.05, -0.05], [-0.05, -0.05, 0.95, 0],
                [1.95, 0, 0, 0]]  # fmt: skip
    close(token_reward(of, 0.1), expected)
    close(sequence_reward(of, 0.1), [0.9, -0.15, 0.85, 1.95])


def test_token_rewards_sum_to_the_reward_of_the_answer():
    generator = torch.Generator().manual_seed(0)
    scores = {
        key: torch.randn(MASK.shape, generator=generator) for key in ("old_logprob", "ref_logprob")
    }
    of = full([1.0, 0.0, -2.0, 0.5], **scores)
    for coef in (0.0, 0.3):
        torch.testing.assert_close(token_reward(of, coef).sum(-1), sequence_reward(of, coef))


def test_without_a_kl_nothing_asks_for_log_probabilities():
    of = answers([1.0, 0.0, 1.0, 0.0])
    assert torch.equal(sequence_reward(of), of.reward)
    assert token_reward(of)[1].tolist() == [0, 0, 0, 0]


def test_every_baseline_gives_the_difference_made_by_hand():
    of = full([1.0, 0.0, 1.0, 2.0])
    close(advantage("reward", of), [1.0, 0.0, 1.0, 2.0])
    close(advantage("centered", of), [0.5, -0.5, -0.5, 0.5])
    close(advantage("leave_one_out", of), [1.0, -1.0, -1.0, 1.0])
    close(advantage("remax", of), [0.5, -0.5, 1.0, 2.0])
    close(
        advantage("optimal", full([1.0, 0.0, 1.0, 2.0], baseline=OPTIMAL)),
        [0.25, -0.75, 0.75, 1.75],
    )
    close(advantage("batch_centered", of), [0.0, -1.0, 0.0, 1.0])
    # Lengths 2 and 3: 2/5; lengths 3 and 1: (3 + 2)/4.
    close(advantage("length_weighted", of), [0.6, -0.4, -0.25, 0.75])


def test_a_teacher_says_of_each_token_how_much_likelier_it_should_be():
    teacher = torch.arange(16.0).view(4, 4)
    found = advantage("teacher", full([NAN, 0.0, 1.0, 2.0], teacher_logprob=teacher))
    assert torch.equal(found, torch.where(MASK, teacher + 1.0, 0.0))


def test_the_kl_in_the_reward_reaches_estimators_of_whole_answers():
    of = full([1.0, 0.0, 1.0, 2.0])
    close(advantage("leave_one_out", of, 0.1), [1.05, -1.05, -1.1, 1.1])
    close(advantage("remax", of, 0.1), [0.4, -0.65, 0.85, 1.95])


def test_gae_without_discount_and_with_lambda_one_is_the_return_minus_the_value():
    whole = {"advantage__discount": 1.0, "advantage__gae_lambda": 1.0}
    found, target = estimate("gae", full([1.0, 0.0, 1.0, 2.0]), 0.1, **whole)
    # Returns of the hole's row: −0.15, stepped over, −0.1, −0.05.
    close(found, [[0.65, 0.7, 0, 0], [-0.4, 0, -0.35, -0.3], [0.6, 0.65, 0.7, 0],
                            [1.7, 0, 0, 0]])  # fmt: skip
    close(target[1, [0, 2, 3]], [-0.15, -0.1, -0.05])
    assert torch.equal(target.isnan(), ~MASK)


def test_gae_heeds_discount_lambda_and_whitening():
    of = full([1.0, 0.0, 1.0, 2.0])
    found = advantage("gae", of, advantage__discount=0.5, advantage__gae_lambda=0.5)
    # δ of the first row: 0.5·0.25 − 0.25 = −0.125 and 1 − 0.25 = 0.75; −0.125 + 0.25·0.75.
    close(found[0, :2], [0.0625, 0.75])
    white = advantage("gae", of, advantage__whiten=True)[MASK]
    assert abs(white.mean()) < 1e-6 and abs(white.var() - 1) < 1e-4


def test_reinforce_plus_plus_whitens_returns_over_counted_tokens():
    of = full([1.0, 0.0, 1.0, 2.0])
    returns = torch.tensor([0.9, 0.95, -0.15, -0.1, -0.05, 0.85, 0.9, 0.95, 1.95])
    expected = (returns - returns.mean()) / returns.std()
    torch.testing.assert_close(
        advantage("reinforce_plus_plus", of, 0.1)[MASK], expected, rtol=1e-4, atol=1e-4
    )
    discounted = advantage("reinforce_plus_plus", of, advantage__discount=0.5)
    returns = torch.tensor([0.5, 1.0, 0, 0, 0, 0.25, 0.5, 1.0, 2.0])
    expected = (returns - returns.mean()) / returns.std()
    torch.testing.assert_close(discounted[MASK], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(DEVIATING))
def test_a_deviation_is_divided_by_n_or_by_n_minus_one(name):
    of, whole = full([1.0, 0.0, 1.0, 3.0], by_function=[[1.0, 0.0, 1.0, 3.0]]), "advantage__whiten"
    own = {whole: True} if name == "gae" else {}
    one, zero = (advantage(name, of, **own, advantage__ddof=d).double() for d in (1, 0))
    counted = one.abs() > 1e-3
    # Two answers to a prompt, two prompts, or the nine counted tokens.
    ratio = {"batch_normalized": 4 / 3, "gdpo": 4 / 3}.get(name, 2 if one.ndim == 1 else 9 / 8)
    assert counted.any()
    found = (zero[counted] / one[counted]).square()
    torch.testing.assert_close(found, torch.full_like(found, ratio), rtol=1e-3, atol=0)


def test_the_baseline_form_whitens_group_centred_rewards():
    centred = torch.tensor([0.5, 0.5, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5, 0.5])
    found = advantage("reinforce_plus_plus_baseline", full([1.0, 0.0, 1.0, 2.0]))
    expected = (centred - centred.mean()) / centred.std()
    torch.testing.assert_close(found[MASK], expected, rtol=1e-4, atol=1e-4)


def test_several_rewards_are_normalized_apart_and_by_their_weights():
    rows = [[1.0, 0.0, 1.0, 1.0], [5.0, 5.0, 0.0, 9.0], [NAN, 7.0, 3.0, 3.0]]
    of = full([6.0, 5.0, 1.0, 10.0], by_function=rows)
    columns = torch.tensor(rows).T
    group = torch.tensor([0, 0, 1, 1])
    config = {"reward__functions": "a,b,c", "reward__weights": [1.0, 0.5, 0.0]}
    expected = rlkern.advantage.gdpo(columns[:, :2], group, weight=torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(advantage("gdpo", of, **config), expected)
    assert expected.abs().min() > 0.1
    even = advantage("gdpo", full([1.0, 0.0, 1.0, 1.0]))
    close(even, [2**0.5 * 0.8660, -(2**0.5) * 0.8660, 0.0, 0.0])


def test_a_reward_of_weight_zero_does_not_make_an_answer_scorable():
    of = full([NAN, 0.0, 1.0, 0.0], by_function=[[NAN, 0.0, 1.0, 0.0], [3.0, 1.0, 2.0, 1.0]])
    config = {"reward__functions": "a,b", "reward__weights": [1.0, 0.0]}
    found = advantage("gdpo", of, **config)
    close(found, [0.0, 0.0, 1.0, -1.0])  # ±0.7071 and 0, of three answers; of four it is 1.2247


# A teacher's advantage looks at no reward, so no answer is unscorable.
@pytest.mark.parametrize("name", sorted(TABLE.keys() - {"teacher"}))
def test_an_unscorable_answer_has_no_advantage_anywhere_and_spoils_no_other(name):
    found = advantage(name, full([NAN, 1.0, 0.0, 1.0]), 0.1)
    assert found.shape in {(4,), MASK.shape} and found.isfinite().all()
    assert not found[0].any() and found[3].any()
    if found.ndim == 2:
        assert not found[~MASK].any()


def test_the_critic_learns_nothing_from_an_unscorable_answer():
    target = estimate("gae", full([NAN, 1.0, 0.0, 1.0]))[1]
    assert target[0].isnan().all() and target[1, 0] == 1.0


@EVERY
def test_the_padding_of_a_batch_changes_no_advantage(name):
    of = full([1.0, 0.0, 0.25, 1.0])
    wide = torch.nn.functional.pad
    scores = ("old_logprob", "ref_logprob", "teacher_logprob", "value")
    longer = full(
        [1.0, 0.0, 0.25, 1.0],
        mask=wide(MASK, (0, 3)),
        **{k: wide(getattr(of, k), (0, 3)) for k in scores},
    )
    found, padded = (advantage(name, rows, 0.1) for rows in (of, longer))
    assert torch.equal(found, padded if padded.ndim == 1 else padded[:, :4])


@EVERY
def test_an_algorithm_that_names_the_advantage_gets_it_with_its_own_settings(name):
    for algorithm in rlkern.algorithms().values():
        if algorithm.advantage == name:
            own = settings(algorithm=algorithm.name, **asked(algorithm.name))
            found = with_advantage(Rewarded(full([1.0, 0.0, 0.25, 1.0]), 0.1, own))
            assert found.advantage.any() and found.advantage.isfinite().all()
            assert (found.value_target is not None) == ("value" in algorithm.needs)
            by_name = TABLE[name](Rewarded(full([1.0, 0.0, 0.25, 1.0]), 0.1, own))[0]
            assert torch.equal(found.advantage, by_name)
