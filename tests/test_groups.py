# SPDX-License-Identifier: Apache-2.0
"""Groups and the advantages made of them: a plain loop, identities, invariants, bad input."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern.backends import _load
from rlkern.backends.eager.group_advantage import KINDS, group_index
from rlkern.ops.group_advantage import group_segments

AVAILABLE = [name for name in ("eager", "cpu", "triton") if _load(name)[1] is None]
EXACT = [name for name in AVAILABLE if name != "triton"]  # those that take float64
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
NORMALIZED = ("normalized", "pass_at_k_normalized")
SUMS_TO_ZERO = ("normalized", "centered", "leave_one_out", "max_rl")
HUGE = 2**63 - 1


@pytest.fixture(params=EXACT)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


@pytest.fixture(params=AVAILABLE)
def any_backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def by_kind(reward, group, kind, length, **options):
    """Returns the advantages; the length goes to the one kind that takes it."""
    given_length = {"length": length} if kind == "length_weighted" else {}
    return rlkern.group_advantage(reward, group, kind=kind, **given_length, **options)


def of_member(i, members, reward, length, kind, eps, ddof):
    """Returns the advantage of one of at least two known members by the formula of its kind."""
    values = [reward[j] for j in members]
    others = [reward[j] for j in members if j != i]
    mean, r = statistics.fmean(values), reward[i]
    variance = sum((x - mean) ** 2 for x in values) / max(len(values) - ddof, 1)
    tokens = sum(length[j] for j in members)
    by_length = sum(length[j] * reward[j] for j in members) / tokens if tokens else mean
    best = max(0.0, r - max(others))
    return {
        "normalized": (r - mean) / (math.sqrt(variance) + eps),
        "centered": r - mean,
        "leave_one_out": r - statistics.fmean(others),
        "length_weighted": r - by_length,
        "max_rl": (r - mean) / mean if mean > 0 else 0.0,
        "pass_at_k": best,
        "pass_at_k_normalized": best / (math.sqrt(variance) + eps),
    }[kind]


def by_loop(reward, group, kind, length, eps=1e-4, ddof=1):
    """Returns the advantages by a loop over groups."""
    result = [0.0] * len(reward)
    for g in set(group):
        known = [i for i, own in enumerate(group) if own == g and not math.isnan(reward[i])]
        for i in known if len(known) > 1 else []:
            result[i] = of_member(i, known, reward, length, kind, eps, ddof)
    return result


def ragged(n=90, seed=0):
    """Returns rewards with NaN, ties and groups of every size, in no order, and lengths."""
    random = torch.Generator().manual_seed(seed)
    reward = torch.randn(n, generator=random, dtype=torch.float64)
    group = (torch.randint(0, 64, (n,), generator=random).sqrt().long() - 3) * 10**12
    length = torch.randint(0, 9, (n,), generator=random)
    reward[::7] = math.nan
    reward[group == 0] = math.nan
    reward[group == 10**12] = 1 / 3
    own = group == -(10**12)
    reward[own] -= reward[own].nan_to_num(-9).max()  # the best is 0
    length[group == 2 * 10**12] = 0
    best = reward.nan_to_num(-9).argmax()
    reward[(group == group[best]).nonzero()[:2]] = reward[best].clone()  # two are best
    return reward, group, length


@pytest.mark.parametrize("ddof,eps", ((0, 1e-2), (1, 1e-4)))
@EVERY_KIND
def test_advantages_are_those_of_a_loop_over_groups(backend, kind, ddof, eps):
    reward, group, length = ragged()
    got = by_kind(reward, group, kind, length, eps=eps, ddof=ddof)
    rows = (reward.tolist(), group.tolist(), kind, length.tolist())
    torch.testing.assert_close(got, torch.tensor(by_loop(*rows, eps, ddof)).double())
    assert got[reward.isnan()].eq(0).all() and got[group == 10**12].eq(0).all()


@EVERY_KIND
@pytest.mark.parametrize("sizes", ((1, 1), (300,), (128, 129, 2), (7,) * 40))
def test_every_backend_errs_no_more_than_eager_does(any_backend, kind, sizes):
    group = torch.cat([torch.full((n,), -g) for g, n in enumerate(sizes)])
    random = torch.Generator().manual_seed(len(group))
    group = group[torch.randperm(len(group), generator=random)]
    reward = torch.rand(len(group), generator=random)
    reward[len(group) // 3] = math.nan
    length = torch.randint(0, 4096, (len(group),), generator=random)
    got = by_kind(reward, group, kind, length)
    with rlkern.use_backend("eager"):
        oracle = by_kind(reward.double(), group, kind, length)
        eager = by_kind(reward, group, kind, length)
    floor = 4 * torch.finfo(torch.float32).eps * oracle.abs().max()
    assert (got - oracle).abs().max() <= 2 * (eager - oracle).abs().max() + floor


IDS = {
    "sorted": torch.arange(100) // 8,
    "dense": torch.arange(100) * 37 % 11,
    "negative": -(torch.arange(100) * 37 % 11) - 5,
    "hashes": (torch.arange(100) // 3 * 2654435761 + 987654321987) * 40503 % (2**61 - 1),
    "ends of the range": torch.tensor([HUGE, -HUGE - 1, 0, HUGE, -1, -HUGE - 1]),
    "beyond one digit": torch.tensor([8192, 0, 8191, 8193, 2**26, 2**26 + 8192, 0]),
    "one": torch.tensor([3]),
    "all different": torch.randperm(70, generator=torch.Generator().manual_seed(0)),
    "none": torch.empty(0, dtype=torch.int64),
    "int32": (torch.arange(50) % 7).int(),
    "strided": torch.arange(60)[::3] % 4,
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_segments_list_the_groups_by_id_and_their_members_in_order(any_backend, ids):
    order, offset = group_segments(ids)
    expected = sorted(range(len(ids)), key=lambda i: ids[i].item())
    assert order.tolist() == expected and order.dtype == offset.dtype == torch.int64
    sizes = [ids.tolist().count(x) for x in sorted(set(ids.tolist()))]
    begins = [sum(sizes[:g]) for g in range(len(sizes))]
    assert offset.tolist() == begins + [len(ids)] * (len(ids) + 1 - len(sizes))
    numbers = [sorted(set(ids.tolist())).index(x) for x in ids[order].tolist()]
    assert group_index(order, offset).tolist() == numbers


@pytest.mark.parametrize("kind", SUMS_TO_ZERO)
def test_advantages_of_a_group_sum_to_zero(backend, kind):
    reward, group, length = ragged()
    got = by_kind(reward.exp(), group, kind, length)
    for g in group.unique():
        assert got[group == g].sum().item() == pytest.approx(0, abs=1e-9)


def test_length_weighted_advantages_sum_to_zero_weighted_by_length(backend):
    reward, group, length = ragged()
    got = by_kind(reward, group, "length_weighted", length)
    assert (got * length)[~reward.isnan()].sum().item() == pytest.approx(0, abs=1e-9)


def test_equal_lengths_give_the_centered_advantage(backend):
    reward, group, _ = ragged()
    got = by_kind(reward, group, "length_weighted", torch.full_like(group, 17))
    torch.testing.assert_close(got, by_kind(reward, group, "centered", None))


def test_leave_one_out_is_centered_times_n_over_n_minus_one(backend):
    reward, group, _ = ragged()
    n = torch.tensor([((group == g) & ~reward.isnan()).sum() for g in group])
    centered = by_kind(reward, group, "centered", None)
    expected = torch.where(n > 1, centered * n / (n - 1), 0.0)
    torch.testing.assert_close(by_kind(reward, group, "leave_one_out", None), expected)


def test_the_best_of_two_is_ahead_by_its_leave_one_out_advantage(backend):
    reward, group = torch.tensor([1.0, 4.0, 2.0, -3.0]), torch.tensor([0, 0, 1, 1])
    expected = by_kind(reward, group, "leave_one_out", None).clamp(min=0)
    torch.testing.assert_close(by_kind(reward, group, "pass_at_k", None), expected)


def test_max_rl_has_no_advantage_where_nobody_succeeds(backend):
    reward = torch.tensor([0.0, 0.0, 1.0, 0.0, -3.0, 1.0])
    got = by_kind(reward, torch.tensor([0, 0, 1, 1, 2, 2]), "max_rl", None)
    assert got.tolist() == [0, 0, 1, -1, 0, 0]


@EVERY_KIND
def test_a_group_that_agrees_or_has_one_known_member_has_no_advantage(any_backend, kind):
    group = torch.arange(7).repeat_interleave(torch.arange(2, 9))
    length = torch.arange(len(group))
    for value in (0.1, 0.7, 1 / 3, 123.456, 1e6 / 3):  # sums of none of them are exact
        reward = torch.full(group.shape, value)
        reward[0] = math.nan
        assert by_kind(reward, group, kind, length, eps=0.0).eq(0).all()


@EVERY_KIND
def test_no_rewards_have_no_advantages_and_only_unknown_ones_have_zero(any_backend, kind):
    none = torch.empty(0, dtype=torch.int64)
    assert by_kind(torch.empty(0), none, kind, none).shape == (0,)
    group = torch.tensor([0, 0, 1])
    assert by_kind(torch.full((3,), math.nan), group, kind, group).tolist() == [0, 0, 0]


WHOLE = st.one_of(st.integers(-2, 2).map(float), st.just(math.nan))
FRACTIONS = st.one_of(WHOLE, st.floats(-4, 4, width=32))


@st.composite
def rewarded_groups(draw, numbers):
    n = draw(st.integers(2, 24))
    reward = torch.tensor(draw(st.lists(numbers, min_size=n, max_size=n)), dtype=torch.float64)
    ids = torch.tensor(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    length = torch.tensor(draw(st.lists(st.integers(0, 50), min_size=n, max_size=n)))
    return reward, ids, length


@pytest.mark.parametrize("name", EXACT)
@EVERY_KIND
@given(groups=rewarded_groups(FRACTIONS), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_order_of_samples_and_the_names_of_groups_do_not_matter(name, kind, groups, seed):
    reward, group, length = groups
    random = torch.Generator().manual_seed(seed)
    p, names = (torch.randperm(n, generator=random) for n in (len(reward), 6))
    with rlkern.use_backend(name):
        plain = by_kind(reward, group, kind, length)
        permuted = by_kind(reward[p], group[p], kind, length[p])
        renamed = by_kind(reward, names[group] * 10**15, kind, length)
    torch.testing.assert_close(permuted, plain[p], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(renamed, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
@EVERY_KIND
@given(groups=rewarded_groups(WHOLE), shift=st.integers(-8, 8), scale=st.sampled_from((0.5, 3.0)))
@settings(max_examples=20)
def test_shift_and_scale_of_rewards_act_as_the_kind_says(name, kind, groups, shift, scale):
    reward, group, length = groups
    with rlkern.use_backend(name):
        plain = by_kind(reward, group, kind, length, eps=0.0)
        moved = by_kind(reward * scale + shift, group, kind, length, eps=0.0)
        scaled = by_kind(reward * scale, group, kind, length, eps=0.0)
    free_of_scale = kind in (*NORMALIZED, "max_rl")
    torch.testing.assert_close(scaled, plain if free_of_scale else plain * scale)
    if kind != "max_rl":
        torch.testing.assert_close(moved, scaled)


def test_results_of_a_group_do_not_depend_on_the_groups_around_it(backend):
    reward, group, length = ragged()
    for kind in KINDS:
        whole = by_kind(reward.float(), group, kind, length)
        for g in group.unique():
            own = group == g
            alone = by_kind(reward.float()[own], group[own], kind, length[own])
            assert torch.equal(alone, whole[own])


@pytest.mark.skipif("cpu" not in AVAILABLE, reason="the C++ extension is not built")
@pytest.mark.parametrize("sizes", ((8,) * 4096, (30000, 1, 2, 2765), (2,) * 16384))
def test_the_number_of_threads_does_not_change_a_bit(sizes):
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    reward = torch.rand(len(group), generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with rlkern.use_backend("cpu"):
                results.append(rlkern.group_advantage(reward, group))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, results[0]) for x in results) and results[0].isfinite().all()
    with rlkern.use_backend("eager"):
        exact = rlkern.group_advantage(reward.double(), group)
    torch.testing.assert_close(results[0], exact.float())


def test_the_operations_pass_opcheck(any_backend):
    reward, group = torch.randn(6), torch.tensor([4, 4, 1, 1, 1, 9])
    torch.library.opcheck(torch.ops.rlkern.group_segments.default, (group,))
    segments, eps = group_segments(group), torch.full((1,), 1e-4, dtype=torch.float64)
    for kind in KINDS:
        arguments = (reward, *segments, kind, eps, 1, torch.arange(6.0))
        torch.library.opcheck(torch.ops.rlkern.group_advantage.default, arguments)


def compiled_calls(reward, group, eps):
    length = torch.arange(len(reward))
    return [by_kind(reward, group, kind, length, eps=eps) for kind in KINDS]


def test_a_compiled_call_has_the_bits_of_the_plain_one_whatever_size_and_eps(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(compiled_calls, backend=counter, fullgraph=True)
    for n, eps in ((6, 1e-4), (7, 1e-6), (40, 1e-2), (9, 0.3)):
        reward, group = torch.rand(n), torch.arange(n) * 5 % 3
        pairs = zip(compiled(reward, group, eps), compiled_calls(reward, group, eps), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
    assert counter.frame_count <= 2
