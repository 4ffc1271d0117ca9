# SPDX-License-Identifier: Apache-2.0
"""Which samples are trained on and how often: by weights and by copies."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern import aggregate, sampling
from rlkern.testing.cases import Case, make_batch

NAN = math.nan


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(verdicts: str, size=2):
    """Returns rewards and ids: per letter a group, m mixed, a agreeing, n with nothing known."""
    member = {"m": [1.0] + [0.0] * (size - 1), "a": [1.0] * size, "n": [NAN] * size}
    reward = torch.tensor([r for v in verdicts for r in member[v]])
    return reward, torch.arange(len(verdicts)).repeat_interleave(size)


def test_a_group_is_mixed_where_two_known_rewards_differ():
    reward = torch.tensor([1.0, NAN, 0.0, 0.5, 0.5, NAN, 2.0, NAN, NAN, 0.1, 0.1, 0.1])
    group = torch.tensor([7, 7, 7, -2, -2, -2, 5, 5, 4, 9, 9, 9])
    keep = sampling.mixed_groups(reward, group)
    assert keep.tolist() == [True] * 3 + [False] * 9
    p = torch.randperm(12, generator=seeded())
    assert torch.equal(sampling.mixed_groups(reward[p], group[p]), keep[p])


@pytest.mark.parametrize("value", (0.1, 0.7, 1 / 3, 1e6 / 3))
def test_a_group_that_agrees_is_not_mixed_whatever_rounding_its_mean_has(value):
    reward, group = torch.full((7,), value), torch.zeros(7, dtype=torch.int32)
    assert not sampling.mixed_groups(reward, group).any()
    reward[3] += 1e-6 * value  # a neighbour in float32
    assert sampling.mixed_groups(reward, group).all()


def test_groups_that_are_not_mixed_are_those_without_advantage():
    random = seeded()
    reward = torch.randint(0, 2, (200,), generator=random).float()
    group = torch.randint(0, 60, (200,), generator=random)
    reward[::9] = NAN
    mixed = sampling.mixed_groups(reward, group)
    centered = rlkern.group_advantage(reward, group, kind="centered")
    assert torch.equal(mixed & ~reward.isnan(), centered != 0) and 0 < mixed.sum() < 200


@st.composite
def rewarded_groups(draw):
    n = draw(st.integers(0, 24))
    rewards = st.lists(st.sampled_from((0.0, 1.0, NAN)), min_size=n, max_size=n)
    ids = st.lists(st.integers(-2, 6), min_size=n, max_size=n)
    return torch.tensor(draw(rewards)), torch.tensor(draw(ids), dtype=torch.int64)


@given(groups=rewarded_groups(), seed=st.integers(0, 99))
@settings(max_examples=80)
def test_weights_and_copies_hold_each_sample_equally_often_and_fill_every_place(groups, seed):
    reward, group = groups
    multiplicity = sampling.refill_multiplicity(reward, group, generator=seeded(seed))
    index = sampling.refill_index(reward, group, generator=seeded(seed))
    assert torch.equal(torch.bincount(index, minlength=len(reward)), multiplicity)
    mixed = sampling.mixed_groups(reward, group)
    assert torch.equal(multiplicity > 0, mixed)
    copies = {g.item(): multiplicity[group == g].unique() for g in group.unique()}
    assert all(len(c) == 1 for c in copies.values())  # equal within a group
    counts = [c.item() for c in copies.values() if c.item()]
    if counts:
        assert sum(counts) == len(copies) and max(counts) - min(counts) <= 1


@pytest.mark.parametrize("verdicts", ("ama", "aam", "mmaa", "maaaaaa", "nnm", "mm", "mnamaamm"))
def test_copies_stand_in_the_places_of_the_groups_they_replace(verdicts):
    reward, group = batch_of(verdicts, size=3)
    index = sampling.refill_index(reward, group, generator=seeded())
    source = group[index].reshape(-1, 3)
    assert index.shape == reward.shape and (source == source[:, :1]).all()
    assert (index.reshape(-1, 3) % 3 == torch.arange(3)).all()
    for place, verdict in enumerate(verdicts):
        own = source[place, 0].item()
        assert own == place if verdict == "m" else verdicts[own] == "m"


@pytest.mark.parametrize("verdicts", ("aaa", "nan", "", "a"))
def test_without_a_survivor_all_weights_are_zero_and_nothing_is_copied(verdicts):
    reward, group = batch_of(verdicts)
    multiplicity = sampling.refill_multiplicity(reward, group, generator=seeded())
    assert multiplicity.eq(0).all() and multiplicity.shape == reward.shape
    assert sampling.refill_index(reward, group, generator=seeded()).shape == (0,)
    mask = torch.ones(len(reward), 4, dtype=torch.bool)
    for mode in aggregate.MODES:
        assert sampling.multiplicity_weight(mask, multiplicity, mode).eq(0).all()


def test_more_places_than_survivors_are_filled_evenly():
    reward, group = batch_of("maaamaa")  # two survivors, five places
    for seed in range(8):
        counts = sampling.refill_multiplicity(reward, group, generator=seeded(seed))[::2]
        assert sorted(counts.tolist()) == [0] * 5 + [3, 4]


def test_which_groups_are_copied_is_random_and_follows_the_seed():
    reward, group = batch_of("mmmma")
    chosen = [
        sampling.refill_multiplicity(reward, group, generator=seeded(s))[::2].argmax().item()
        for s in range(60)
    ]
    again = sampling.refill_multiplicity(reward, group, generator=seeded(7))[::2].argmax().item()
    assert set(chosen) == {0, 1, 2, 3} and chosen[7] == again
    assert all(5 <= chosen.count(g) <= 25 for g in range(4))


def loss_and_gradient(batch, logits, advantage_of, weight, index=None):
    """Returns the loss of the batch, or of the samples indexed, and the gradient of the logits."""
    pick = slice(None) if index is None else index
    leaf = logits.clone().requires_grad_()
    out = rlkern.policy_loss(
        leaf[pick], batch.token[pick], advantage_of[pick], batch.mask[pick], algorithm="grpo",
        old_logprob=batch.old_logprob[pick], ref_logprob=batch.ref_logprob[pick], kl_coef=0.3,
        kl_estimator="k2", weight=weight,
    )  # fmt: skip
    out.loss.backward()
    return out.loss.detach(), leaf.grad


@pytest.mark.parametrize("mode", aggregate.MODES)
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_one_step_on_weights_is_the_step_on_copies(mode, seed):
    batch = make_batch(Case("dupo", B=10, T=4, V=13), torch.float64)
    reward, group = batch_of("mamna")
    reward, group = reward.roll(3), group.roll(3)  # groups in no order
    adv = rlkern.group_advantage(reward, group).double()
    assert adv.any() and not batch.mask.all()
    multiplicity = sampling.refill_multiplicity(reward, group, generator=seeded(seed))
    index = sampling.refill_index(reward, group, generator=seeded(seed))
    weight = sampling.multiplicity_weight(batch.mask, multiplicity, mode).double()
    copied = aggregate.token_weight(batch.mask[index], mode).double()
    by_weight = loss_and_gradient(batch, batch.logits, adv, weight)
    by_copy = loss_and_gradient(batch, batch.logits, adv, copied, index)
    torch.testing.assert_close(by_weight, by_copy, rtol=1e-6, atol=1e-9)
    unweighted = loss_and_gradient(batch, batch.logits, adv, None)
    assert (by_weight[1] - unweighted[1]).abs().max() > 1e-4


def test_weights_of_micro_batches_add_up_to_those_of_the_batch():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    multiplicity = torch.tensor([2, 0, 1, 1])
    counts = {"token_mean": 8, "sequence_token_mean": 3, "sequence_token_sum": 3}
    for mode, count in counts.items():
        whole = sampling.multiplicity_weight(mask, multiplicity, mode)
        parts = [
            sampling.multiplicity_weight(mask[i], multiplicity[i], mode, count=count)
            for i in (slice(0, 2), slice(2, 4))
        ]
        torch.testing.assert_close(torch.cat(parts), whole)
    assert sampling.multiplicity_weight(mask, multiplicity).tolist()[0] == [0.25, 0.25, 0.25]


def test_a_sum_over_tokens_has_weights_of_one_and_ranks_multiply_any_weight():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    assert aggregate.token_weight(mask, "token_sum").equal(mask.float())
    assert aggregate.token_weight(mask, "token_sum", dtype=torch.float64).dtype == torch.float64
    for mode in aggregate.MODES:
        count = {} if mode == "token_sum" else {"count": 12}
        one = aggregate.token_weight(mask, mode, **count)
        assert aggregate.token_weight(mask, mode, dp_size=4, **count).equal(4 * one)
    with pytest.raises(ValueError, match="token_weight: count must be None with mode 'token_sum'"):
        aggregate.token_weight(mask, "token_sum", count=3)
    # What two ranks with the count of both make of their gradients' mean is the whole batch's.
    whole = aggregate.token_weight(mask, "sequence_token_mean")
    halves = [
        aggregate.token_weight(part, "sequence_token_mean", count=2, dp_size=2)
        for part in (mask[:1], mask[1:])
    ]
    torch.testing.assert_close(torch.cat(halves) / 2, whole)


def test_the_penalty_of_length_is_that_of_the_papers_numbers():
    length = torch.tensor([0, 16384, 16385, 18432, 20479, 20480, 20481, 10**6], dtype=torch.int32)
    penalty = sampling.overlong_penalty(length, max_length=20480, cache=4096)
    expected = [0, 0, -1 / 4096, -0.5, -4095 / 4096, -1, -1, -1]
    assert penalty.tolist() == expected and penalty.dtype == torch.float32
    whole = sampling.overlong_penalty(torch.tensor([0, 1, 4, 5]), max_length=4, cache=4)
    assert whole.tolist() == [0, -0.25, -1, -1]  # it may grow over the whole length


def test_an_answer_that_was_cut_off_counts_nowhere():
    mask = torch.tensor([[True, False], [True, True]])
    kept = sampling.overlong_filter(mask, torch.tensor([False, True]))
    assert kept.tolist() == [[False, False], [True, True]]
    assert aggregate.token_weight(kept).tolist() == [[0, 0], [0.5, 0.5]]


def compiled_calls(reward, group, mask):
    length, finished = mask.sum(-1), mask[:, -1]
    keep = sampling.mixed_groups(reward, group)
    return (
        keep,
        sampling.multiplicity_weight(mask, keep * length),
        sampling.overlong_penalty(length, max_length=3, cache=2),
        sampling.overlong_filter(mask, finished),
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


REWARD, GROUP, MASK = torch.ones(4), torch.zeros(4, dtype=torch.int64), torch.ones(4, 2).bool()
REFUSED = [
    (lambda: sampling.mixed_groups(REWARD[:, None], GROUP), "mixed_groups: reward must be (N,)"),
    (lambda: sampling.mixed_groups(REWARD, REWARD), "group must be int64 or int32, got (4,) float"),
    (lambda: sampling.mixed_groups(REWARD.bfloat16(), GROUP), "reward must be float32 or float64"),
    (lambda: sampling.refill_index(REWARD, GROUP[:3], generator=seeded()), "group must be (4,)"),
    (lambda: sampling.refill_index(REWARD, GROUP, generator=7), "torch.Generator, got int"),
    (lambda: sampling.refill_multiplicity(REWARD, GROUP, generator=None), "Generator, got None"),
    (lambda: sampling.multiplicity_weight(MASK, REWARD), "multiplicity must be int64 or int32"),
    (lambda: sampling.multiplicity_weight(MASK[0], GROUP), "mask must be (B, T), got (2,) bool"),
    (lambda: sampling.multiplicity_weight(MASK, GROUP, "mean"), "mode must be one of token_mean"),
    (lambda: sampling.overlong_penalty(REWARD, max_length=9, cache=1), "length must be int64 or"),
    (
        lambda: sampling.overlong_penalty(GROUP, max_length=9, cache=0),
        "cache must be in (0, max_le",
    ),
    (lambda: sampling.overlong_penalty(GROUP, max_length=9, cache=10), "= 9], got 10"),
    (lambda: sampling.overlong_filter(MASK, GROUP), "finished must be bool, got (4,) int64"),
    (lambda: sampling.overlong_filter(MASK[0], MASK[0]), "mask must be (B, T), got (2,) bool"),
]


@pytest.mark.parametrize("call,sentence", REFUSED)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
