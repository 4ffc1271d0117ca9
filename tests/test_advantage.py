# SPDX-License-Identifier: Apache-2.0
"""Advantages that look at the whole batch, at several rewards or at a baseline from elsewhere."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern import advantage, aggregate
from rlkern.backends.eager.group_advantage import KINDS

NAN = math.nan


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ragged():
    random = seeded()
    reward = torch.rand(40, generator=random, dtype=torch.float64).round(decimals=1)
    group = torch.randint(0, 9, (40,), generator=random)
    reward[::7] = NAN
    return reward, group, ~reward.isnan()


def test_batch_normalized_divides_by_the_deviation_of_all_known_rewards():
    reward, group, known = ragged()
    got = advantage.batch_normalized(reward, group, eps=0.25)
    centered = rlkern.group_advantage(reward, group, kind="centered")
    torch.testing.assert_close(got, centered / (reward[known].std() + 0.25))
    agreeing = advantage.batch_normalized(torch.full((4,), 0.7), torch.zeros(4).long(), eps=0.0)
    assert agreeing.eq(0).all()


def test_gpg_scales_by_the_samples_of_mixed_groups():
    reward = torch.tensor([1.0, 0.0, 0.0, 0.0] + [1.0] * 8 + [NAN] * 4)
    group = torch.arange(16) // 4
    got = advantage.gpg(reward, group)
    centered = rlkern.group_advantage(reward, group, kind="centered")
    assert torch.equal(got, centered * 4) and got.any()
    assert advantage.gpg(torch.ones(4), torch.tensor([0, 0, 1, 1])).eq(0).all()


def test_gdpo_of_one_reward_is_the_normalized_advantage_normalized_again():
    reward, group, known = ragged()
    got = advantage.gdpo(reward[:, None], group, eps=0.0)
    normalized = rlkern.group_advantage(reward, group, eps=0.0)
    expected = (normalized - normalized[known].mean()) / normalized[known].std()
    torch.testing.assert_close(got, torch.where(known, expected, 0.0))


def test_gdpo_does_not_depend_on_the_scale_of_a_reward_and_sums_by_weight():
    reward, group, known = ragged()
    second = torch.rand(40, generator=seeded(1), dtype=torch.float64)
    weight = torch.tensor([0.25, 2.0], dtype=torch.float64)
    got = advantage.gdpo(torch.stack([reward, second], 1), group, weight=weight, eps=0.0)
    scaled = advantage.gdpo(torch.stack([reward * 100, second], 1), group, weight=weight, eps=0.0)
    torch.testing.assert_close(got, scaled)
    parts = [rlkern.group_advantage(x, group, eps=0.0) for x in (reward, second)]
    total = 0.25 * parts[0] + 2 * parts[1]  # an answer that one reward cannot score has the other
    torch.testing.assert_close(got, (total - total.mean()) / total.std())


def test_answers_no_reward_scores_have_no_gdpo_advantage():
    reward = torch.tensor([[1.0, NAN], [0.0, 2.0], [NAN, NAN], [1.0, 1.0]])
    got = advantage.gdpo(reward, torch.zeros(4, dtype=torch.int64))
    assert got[2] == 0 and got.isfinite().all() and got[[0, 1, 3]].all()
    assert got.sum().item() == pytest.approx(0, abs=1e-6)


def test_reinforce_plus_plus_has_mean_zero_and_variance_one_over_tokens():
    reward, group, known = ragged()
    mask = torch.rand(40, 6, generator=seeded(2)) < 0.7
    for got, rows in (
        (advantage.reinforce_plus_plus(reward, mask), reward),
        (
            advantage.reinforce_plus_plus_baseline(reward, group, mask),
            rlkern.group_advantage(reward, group, kind="centered"),
        ),
    ):
        counted = mask & known[:, None]
        tokens = rows[:, None].expand(40, 6)[counted]
        torch.testing.assert_close(got[counted], (tokens - tokens.mean()) / tokens.std(),
                                   rtol=1e-6, atol=1e-6)  # fmt: skip
        assert got[~counted].eq(0).all()


def test_reinforce_plus_plus_takes_a_return_per_token_and_ignores_what_is_masked():
    mask = torch.tensor([[True, True, False], [True, False, True]])
    returns = torch.where(mask, torch.tensor([3.0, 1.0, 2.0]), NAN)
    got = advantage.reinforce_plus_plus(returns, mask)
    torch.testing.assert_close(got[mask], aggregate.whiten(returns.nan_to_num(), mask)[mask])
    assert got.isfinite().all() and got[~mask].eq(0).all()


@pytest.mark.parametrize("with_baseline", (True, False))
def test_reinforce_plus_plus_has_either_ddof_or_takes_the_mean_off_alone(with_baseline):
    reward, group = torch.tensor([3.0, 1.0, 7.0, NAN]).double(), torch.tensor([0, 0, 1, 0])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]).bool()

    def estimate(**options):
        if with_baseline:
            return advantage.reinforce_plus_plus_baseline(reward, group, mask, **options)
        return advantage.reinforce_plus_plus(reward, mask, **options)

    one = [1.0, -1.0, 0.0] if with_baseline else [3.0, 1.0, 7.0]
    tokens = [one[0], one[0], one[1], one[2], one[2], one[2]]
    mean = sum(tokens) / 6
    for options, scale in (
        ({"ddof": 0}, math.sqrt(sum((x - mean) ** 2 for x in tokens) / 6 + 1e-8)),
        ({}, math.sqrt(sum((x - mean) ** 2 for x in tokens) / 5 + 1e-8)),
        ({"kind": "centered"}, 1.0),
    ):
        expected = torch.zeros(4, 3).double()
        expected[:3][mask[:3]] = torch.tensor(
            [(x - mean) / scale for x in tokens], dtype=torch.float64
        )
        torch.testing.assert_close(estimate(**options), expected, rtol=1e-12, atol=1e-14)


def test_every_estimator_by_name_gives_one_finite_number_per_reward():
    reward, group, known = ragged()
    for name, estimate in advantage.ESTIMATORS.items():
        got = estimate(reward, group)
        assert got.shape == reward.shape and got.isfinite().all() and got[known].any(), name
        assert got[~known].eq(0).all() and got.dtype == reward.dtype, name


def compiled_calls(reward, group, mask):
    return (
        advantage.gdpo(torch.stack([reward, reward.cos()], 1), group),
        advantage.remax(reward, reward.sin()),
        advantage.reinforce_plus_plus_baseline(reward, group, mask),
        *(estimate(reward, group) for estimate in advantage.ESTIMATORS.values()),
    )


def test_a_compiled_call_has_the_bits_of_the_plain_one_whatever_the_size():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(compiled_calls, backend=counter, fullgraph=True)
    for B, T in ((6, 3), (7, 4), (20, 5)):
        rows = torch.rand(B), torch.arange(B) * 5 % 3, torch.rand(B, T) < 0.6
        pairs = zip(compiled(*rows), compiled_calls(*rows), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
    assert counter.frame_count <= 2


def test_advantages_are_constants():
    reward = torch.rand(4, requires_grad=True)
    group, mask = torch.tensor([0, 0, 1, 1]), torch.ones(4, 2, dtype=torch.bool)
    results = [estimate(reward, group) for estimate in advantage.ESTIMATORS.values()]
    results += [
        advantage.remax(reward, reward * 2),
        advantage.gdpo(torch.stack([reward, reward], 1), group),
        advantage.reinforce_plus_plus(reward, mask),
        advantage.reinforce_plus_plus_baseline(reward, group, mask),
    ]
    assert not any(x.requires_grad for x in results)


ROWS = {"reward": torch.arange(4.0), "group": torch.tensor([0, 0, 1, 1])}
FLAGS = torch.ones(4, 2, dtype=torch.bool)
REFUSED = [
    (rlkern.group_advantage, {"reward": torch.ones(4, 1)}, "reward must be (N,)", "(4, 1)"),
    (rlkern.group_advantage, {"reward": torch.ones(4).half()}, "float32 or float64", "float16"),
    (rlkern.group_advantage, {"group": torch.ones(4)}, "group must be int64 or int32", "float32"),
    (rlkern.group_advantage, {"group": torch.arange(3)}, "group must be (4,) on cpu", "(3,)"),
    (rlkern.group_advantage, {"kind": "median"}, "kind must be one of normalized", "'median'"),
    (rlkern.group_advantage, {"ddof": 2}, "ddof must be 0 or 1", "2"),
    (rlkern.group_advantage, {"eps": -1.0}, "eps must be at least 0", "-1.0"),
    (rlkern.group_advantage, {"eps": math.nan}, "eps must be finite", "nan"),
    (rlkern.group_advantage, {"reward": math.inf * FLAGS[:, 0]}, "reward must be finite", "inf"),
    (rlkern.group_advantage, {"kind": "length_weighted"}, "length belongs to", "got None for"),
    (rlkern.group_advantage, {"length": torch.arange(4)}, "length belongs to kind",
     "got (4,) int64 on cpu for 'normalized'"),
    (rlkern.group_advantage, {"kind": "length_weighted", "length": torch.ones(4)}, "int64 or int32",
     "float32"),
    (advantage.gdpo, {}, "reward must be (N, K)", "(4,)"),
    (advantage.gdpo, {"reward": torch.ones(4, 2), "weight": torch.ones(3)}, "weight must be (2,)",
     "(3,)"),
    (advantage.batch_normalized, {"ddof": 3}, "ddof must be 0 or 1", "3"),
    (advantage.batch_centered, {"reward": [1.0]}, "reward must be float32 or float64", "list"),
    (lambda reward, group, **x: advantage.remax(reward, x["greedy"]), {"greedy": torch.ones(3)},
     "greedy_reward must be (4,)", "(3,)"),
    (lambda reward, group, **x: advantage.reinforce_plus_plus(reward, x["mask"]),
     {"mask": FLAGS.int()}, "mask must be bool", "int32"),
    (lambda reward, group, **x: advantage.reinforce_plus_plus(reward, x["mask"]),
     {"mask": FLAGS[:3]}, "reward must be (3,)", "(4,)"),
    (lambda reward, group, **x: advantage.reinforce_plus_plus(reward, FLAGS, **x),
     {"kind": "whitened"}, "kind must be normalized or centered", "'whitened'"),
    (lambda reward, group, **x: advantage.reinforce_plus_plus(reward, FLAGS, **x),
     {"ddof": 2}, "ddof must be 0 or 1", "2"),
]  # fmt: skip


@pytest.mark.parametrize("function,changed,expected,got", REFUSED)
def test_bad_input_is_refused_in_one_sentence(function, changed, expected, got):
    with pytest.raises((TypeError, ValueError)) as caught:
        function(**{**ROWS, **changed})
    sentence = str(caught.value)
    assert expected in sentence and got in sentence and "\n" not in sentence


def test_an_estimator_of_a_name_is_that_kind_of_group_advantage():
    reward, group, _ = ragged()
    kinds = [name for name in KINDS if name in advantage.ESTIMATORS]
    found = [advantage.ESTIMATORS[kind](reward, group) for kind in kinds]
    for kind, got in zip(kinds, found):
        assert got.equal(rlkern.group_advantage(reward, group, kind=kind)), kind
    assert len({tuple(x.tolist()) for x in found}) == len(kinds) >= 5


@pytest.mark.parametrize("name,known", (
    ("gdpo", {"eps": 1e-4, "ddof": 1}), ("batch_normalized", {"eps": 1e-4, "ddof": 1}),
))  # fmt: skip
def test_what_is_not_given_is_what_the_docstring_says(name, known):
    reward, group, _ = ragged()
    reward = reward * 1e-3  # so that eps counts
    reward, function = reward[:, None] if name == "gdpo" else reward, getattr(advantage, name)
    assert function(reward, group).equal(function(reward, group, **known))
    for other in ({**known, "eps": 2e-4}, {**known, "ddof": 0}):
        assert not function(reward, group).equal(function(reward, group, **other))


@pytest.mark.parametrize("temperature", (0.5, 1.0, 3.0))
def test_the_optimal_value_is_the_log_of_the_mean_of_exponentials(temperature):
    reward = torch.tensor([[1.0, 0.0, NAN, 0.3], [0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)
    mean = sum(math.exp(r / temperature) for r in (1.0, 0.0, 0.3)) / 3
    got = advantage.optimal_value(reward, temperature=temperature)
    torch.testing.assert_close(
        got, torch.tensor([temperature * math.log(mean), 0.2], dtype=torch.float64)
    )


def test_without_a_reward_or_a_greedy_one_remax_has_no_advantage():
    got = advantage.remax(torch.tensor([NAN, 1.0, 1.0]), torch.tensor([0.5, NAN, 0.25]))
    assert got.tolist() == [0.0, 0.0, 0.75]
