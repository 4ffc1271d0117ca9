# SPDX-License-Identifier: Apache-2.0
"""Advantages of tokens, of steps and of the order of rewards, against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlkern
from rlkern import advantage

NAN = math.nan


def answers(seed, B=12, T=6):
    """Returns (token_reward, group, logprob, Σp², mask, correction) of ragged answers."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, T, 9, generator=random, dtype=torch.float64)
    token = torch.randint(9, (B, T), generator=random)
    scored = rlkern.token_logprob(logits, token)
    mask = torch.arange(T) < torch.randint(0, T + 1, (B, 1), generator=random)
    mask[:, 1] &= torch.rand(B, generator=random) < 0.8  # a hole
    reward = torch.randn(B, T, generator=random, dtype=torch.float64)
    group = torch.randint(0, 4, (B,), generator=random) * 1000 - 7
    correction = torch.rand(B, T, generator=random, dtype=torch.float64) * 2
    return reward, group, scored.logprob, scored.sum_pi_squared, mask, correction


def loop_baseline(reward, group, logprob, squares, mask, correction, eps):
    """Returns G − B, one token and one group at a time."""
    B, T = mask.shape
    found = torch.zeros(B, T, dtype=torch.float64)

    def to_go(i, t):
        return sum(reward[i, k].item() for k in range(t, T) if mask[i, k])

    def weight(i, t):
        steps = [k for k in range(t + 1) if mask[i, k]]
        lengths = [1 - 2 * logprob[i, k].exp().item() + squares[i, k].item() for k in steps]
        return sum(x * correction[i, k].item() ** 2 for x, k in zip(lengths, steps))

    for i, t in mask.nonzero().tolist():
        there = [j for j in range(B) if group[j] == group[i] and mask[j, t]]
        if len(there) > 1:
            above = sum(to_go(j, t) * weight(j, t) for j in there)
            found[i, t] = to_go(i, t) - above / (sum(weight(j, t) for j in there) + eps)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_optimal_token_baseline_is_its_loop(seed):
    reward, group, logprob, squares, mask, correction = answers(seed)
    rows = reward, group, logprob, squares, mask
    plain = advantage.optimal_token_baseline(*rows)
    one = torch.ones_like(correction)
    torch.testing.assert_close(plain, loop_baseline(*rows, one, 1e-8), rtol=1e-12, atol=1e-12)
    found = advantage.optimal_token_baseline(*rows, correction=correction, eps=0.1)
    expected = loop_baseline(*rows, correction, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.any() and not found[~mask].any()


def test_a_length_is_that_of_the_gradient_of_the_logits():
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    scored = rlkern.token_logprob(logits, torch.tensor([2]))
    scored.logprob.sum().backward()
    length = 1 - 2 * scored.logprob.exp() + scored.sum_pi_squared
    torch.testing.assert_close(length.detach(), logits.grad.square().sum(-1))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), garbage=st.sampled_from([NAN, math.inf, -1e30]))
def test_masked_garbage_and_the_order_of_answers_change_no_token_baseline(seed, garbage):
    reward, group, logprob, squares, mask, _ = answers(seed)
    whole = advantage.optimal_token_baseline(reward, group, logprob, squares, mask)
    spoiled = [torch.where(mask, x, garbage) for x in (reward, logprob, squares)]
    again = advantage.optimal_token_baseline(spoiled[0], group, *spoiled[1:], mask)
    assert again.equal(whole)
    order = torch.randperm(len(group), generator=torch.Generator().manual_seed(seed))
    rows = [x[order] for x in (reward, group, logprob, squares, mask)]
    other = advantage.optimal_token_baseline(*rows)
    torch.testing.assert_close(other, whole[order], rtol=1e-9, atol=1e-9)


def test_an_answer_without_a_reward_is_left_out_of_its_group():
    reward, group, logprob, squares, mask, _ = answers(0)
    without = reward.clone()
    without[3, mask[3].nonzero()[0]] = NAN
    found = advantage.optimal_token_baseline(without, group, logprob, squares, mask)
    rest = torch.arange(len(group)) != 3
    rows = [x[rest] for x in (reward, group, logprob, squares, mask)]
    assert mask[3].any() and not found[3].any()
    torch.testing.assert_close(found[rest], advantage.optimal_token_baseline(*rows))


def steps(seed, N=10, S=40):
    """Returns the arguments of gigpo, some answers and steps without a number."""
    random = torch.Generator().manual_seed(seed)
    reward = torch.rand(N, generator=random, dtype=torch.float64).round(decimals=1)
    reward[3] = NAN
    step_return = torch.rand(S, generator=random, dtype=torch.float64)
    step_return[5] = NAN
    group = torch.randint(0, 3, (N,), generator=random) * 50
    observation, answer = (torch.randint(0, n, (S,), generator=random) for n in (5, N))
    return reward, group, step_return, observation * 9 - 4, answer


def loop_group(value, key, kind, eps):
    """Returns value − mean (÷ deviation + eps) among equal keys; 0 for NaN and alone."""
    found = []
    for x, k in zip(value, key):
        same = [y for y, other in zip(value, key) if other == k and y == y]
        if x != x or len(same) < 2 or min(same) == max(same):
            found.append(0.0)
            continue
        mean = math.fsum(same) / len(same)
        deviation = math.sqrt(math.fsum((y - mean) ** 2 for y in same) / (len(same) - 1))
        found.append((x - mean) / (deviation + eps if kind == "normalized" else 1.0))
    return found


@pytest.mark.parametrize("kind", ("normalized", "centered"))
@pytest.mark.parametrize("seed", range(3))
def test_gigpo_adds_what_a_step_won_over_others_at_the_same_observation(kind, seed):
    reward, group, step_return, observation, answer = steps(seed)
    found = advantage.gigpo(
        reward, group, step_return, observation, answer, kind=kind, step_coef=0.5, eps=0.01
    )
    of_answer = loop_group(reward.tolist(), group.tolist(), kind, 0.01)
    keys = list(zip(group[answer].tolist(), observation.tolist()))
    of_step = loop_group(step_return.tolist(), keys, kind, 0.01)
    expected = [of_answer[i] + 0.5 * x for i, x in zip(answer.tolist(), of_step)]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_steps_of_other_prompts_are_never_compared():
    reward, group = torch.zeros(2), torch.tensor([0, 1])
    seen, answer = torch.tensor([7, 7]), torch.tensor([0, 1])
    found = advantage.gigpo(reward, group, torch.tensor([1.0, 0.0]), seen, answer)
    assert found.tolist() == [0.0, 0.0]


def loop_win_rate(reward, group):
    found = []
    for i, (r, g) in enumerate(zip(reward, group)):
        others = [x for j, (x, h) in enumerate(zip(reward, group)) if j != i and h == g and x == x]
        wins = sum((x < r) + 0.5 * (x == r) for x in others)
        found.append(wins / len(others) - 0.5 if others and r == r else 0.0)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([NAN, -1.0, 0.0, 0.5, 2.0]), st.integers(-2, 2))))
def test_a_win_rate_is_its_loop_has_mean_zero_and_depends_on_the_order_alone(pairs):
    reward = torch.tensor([r for r, _ in pairs], dtype=torch.float64)
    group = torch.tensor([g for _, g in pairs], dtype=torch.int64)
    found = advantage.win_rate(reward, group)
    expected = loop_win_rate(*zip(*pairs)) if pairs else []
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12,
                               atol=1e-12)  # fmt: skip
    for g in set(group.tolist()):
        assert abs(found[group == g].sum()) < 1e-12
    assert advantage.win_rate(reward.exp() * 3 - 1, group).equal(found)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    assert advantage.win_rate(reward[order], group[order]).equal(found[order])


@pytest.mark.parametrize(
    ("function", "change", "message"),
    [
        ("otb", {"token_reward": torch.zeros(4)}, r"token_reward must be \(B, T\), got \(4,\)"),
        ("otb", {"group": torch.zeros(2)}, "group must be int64 or int32, got"),
        ("otb", {"logprob": torch.zeros(2, 3)}, r"logprob must be \(2, 2\) on cpu, got"),
        ("otb", {"eps": -1.0}, "eps must be at least 0, got -1.0"),
        ("gigpo", {"step_coef": -1.0}, "step_coef must be at least 0, got -1.0"),
        ("gigpo", {"answer": torch.zeros(3).long()}, r"answer must be \(2,\) on cpu, got"),
        ("gigpo", {"step_return": torch.zeros(2).double()}, "step_return must be float32, got"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(function, change, message):
    x, ids = torch.zeros(2, 2), torch.tensor([0, 1])
    otb = {"token_reward": x, "group": ids, "logprob": x, "sum_pi_squared": x, "mask": x == 0}
    gigpo = {"reward": x[0], "group": ids, "step_return": x[0], "observation": ids, "answer": ids}
    call, arguments = {
        "otb": (advantage.optimal_token_baseline, otb),
        "gigpo": (advantage.gigpo, gigpo),
    }[function]
    with pytest.raises((ValueError, TypeError), match=message):
        call(**{**arguments, **change})
