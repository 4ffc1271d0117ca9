# SPDX-License-Identifier: Apache-2.0
"""Factors by statistics of the batch: against loops, and what no statistic may depend on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlkern
from rlkern.statistics import STATISTICS, Step, kl_cov

NAN = math.nan
OF = {a.statistic: name for name, a in rlkern.algorithms().items() if a.statistic}
EVERY = pytest.mark.parametrize("statistic", STATISTICS)
# Draws random tokens, so rows in another order draw others.
DRAWS = ("clip_cov",)
OF_RATIOS = ("m2po", "fipo", "ess")


def scored(seed, B=5, T=7, packed=False):
    """Returns (logprob, old_logprob, advantage, mask, entropy) off policy, ragged, with a hole."""
    random = torch.Generator().manual_seed(seed)
    logprob, drift, entropy = torch.randn(3, B, T, generator=random, dtype=torch.float64)
    advantage = torch.randn(B, generator=random, dtype=torch.float64)
    lengths = torch.randint(0, T + 1, (B, 1), generator=random)
    mask = (torch.arange(T) < lengths) & (torch.arange(T) != 2)
    logprob = -2 * logprob.abs()
    return logprob, logprob - 0.4 * drift, advantage, mask, entropy.abs()


def factor(statistic, batch, **options):
    logprob, old, advantage, mask, entropy = batch
    return rlkern.statistics.factor(
        logprob, old, advantage, mask, entropy=entropy, algorithm=OF[statistic], **options
    )


def counted(batch):
    """Returns (row, column) and (log π, log r, A, H) of every counted token, one after another."""
    logprob, old, advantage, mask, entropy = batch
    places = [tuple(p) for p in mask.nonzero().tolist()]
    numbers = [
        (logprob[p].item(), (logprob - old)[p].item(), advantage[p[0]].item(), entropy[p].item())
        for p in places
    ]
    return places, numbers


def table(batch, values):
    """Returns values by (row, column) as a tensor, 0 elsewhere."""
    found = torch.zeros(batch[3].shape, dtype=torch.float64)
    for place, value in values.items():
        found[place] = value
    return found


def loop_m2po(batch, second_moment):
    places, numbers = counted(batch)
    rest = {
        p: d * d for p, (_, d, a, _) in zip(places, numbers) if (a > 0 and d > 0) or (a < 0 > d)
    }
    kept = dict.fromkeys(places, 1.0)
    while rest and math.fsum(rest.values()) / len(rest) > second_moment:
        largest = max(rest.values())
        for place in [p for p, x in rest.items() if x == largest]:
            kept[place] = 0.0
            del rest[place]
    return table(batch, kept)


def covariances(batch):
    places, numbers = counted(batch)
    n = max(1, len(places))
    mean_p, mean_a = (math.fsum(x[i] for x in numbers) / n for i in (0, 2))
    return {p: (a - mean_a) * (q - mean_p) for p, (q, _, a, _) in zip(places, numbers)}


def loop_entropy(batch, share):
    places, numbers = counted(batch)
    ordered = sorted(h for *_, h in numbers)
    if not ordered:
        return table(batch, {})
    bound = torch.quantile(torch.tensor(ordered, dtype=torch.float64), 1 - share).item()
    return table(batch, {p: float(h >= bound) for p, (*_, h) in zip(places, numbers)})


def loop_fipo(batch, half_life, low, high):
    places, numbers = counted(batch)
    of = dict(zip(places, (d for _, d, _, _ in numbers)))
    found = {}
    for b, t in places:
        future = sum(
            2 ** (-(k - t) / half_life) * d for (i, k), d in of.items() if i == b and k >= t
        )
        found[b, t] = min(max(math.exp(future), 1 - low), 1 + high)
    return table(batch, found)


def loop_ess(batch):
    places, numbers = counted(batch)
    ratios = [math.exp(d) for _, d, _, _ in numbers]
    if not ratios:
        return table(batch, {})
    ess = sum(ratios) ** 2 / (len(ratios) * sum(r * r for r in ratios))
    return table(batch, {p: min(r, ess) for p, r in zip(places, ratios)})


LOOPS = {
    "m2po": (lambda b: loop_m2po(b, 0.04), {}),
    "m2po wide": (lambda b: loop_m2po(b, 0.2), {"second_moment": 0.2}),
    "entropy_quantile": (lambda b: loop_entropy(b, 0.2), {}),
    "entropy_quantile half": (lambda b: loop_entropy(b, 0.5), {"entropy_share": 0.5}),
    "fipo": (lambda b: loop_fipo(b, 32.0, 0.0, 0.2), {}),
    "fipo near": (
        lambda b: loop_fipo(b, 1.5, 0.2, 0.6),
        {"half_life": 1.5, "future_low": 0.2, "future_high": 0.6},
    ),
    "ess": (loop_ess, {}),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", LOOPS)
def test_a_statistic_is_its_loop(case, seed):
    loop, coefficients = LOOPS[case]
    batch = scored(seed)
    found = factor(case.split()[0], batch, **coefficients)
    torch.testing.assert_close(found, loop(batch), rtol=1e-12, atol=1e-12)
    if seed == 0:
        values = found[batch[3]]
        assert values.min() < values.max()  # the batch tests the bound


def test_the_largest_moments_go_and_those_that_pull_back_stay():
    # log r is 0.5, 0.1, 0.3 where A > 0, −0.5 where A < 0, and 0.9 where A < 0: pulled back.
    d = torch.tensor([[0.5, 0.1], [0.3, 0.0], [-0.5, 0.9]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    old = torch.zeros_like(d)
    batch = (d, old, torch.tensor([1.0, 1.0, -1.0]).double(), mask, old)
    # (0.25 + 0.01 + 0.09 + 0.25)/4 > 0.06; without the two equal ones 0.05.
    assert factor("m2po", batch, second_moment=0.06).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert factor("m2po", batch, second_moment=0.16).tolist() == [[1, 1], [1, 0], [1, 1]]
    assert factor("m2po", batch, second_moment=0.0).tolist() == [[0, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("seed", range(6))
def test_clip_cov_drops_so_many_of_the_eligible_and_no_other(seed):
    batch, bounds = scored(seed, B=12), {"covariance_low": 0.2, "covariance_high": 1.5}
    eligible = {p for p, x in covariances(batch).items() if 0.2 <= x <= 1.5}
    N = int(batch[3].sum())
    for share in (0.0, 0.11, 0.9):
        generator = torch.Generator().manual_seed(seed)
        kept = factor("clip_cov", batch, share=share, generator=generator, **bounds)
        dropped = {tuple(p) for p in (batch[3] & (kept == 0)).nonzero().tolist()}
        assert dropped <= eligible and set(kept.unique().tolist()) <= {0.0, 1.0}
        assert len(dropped) == min(len(eligible), max(1, math.floor(share * N)))
        generator.manual_seed(seed)
        assert factor("clip_cov", batch, share=share, generator=generator, **bounds).equal(kept)


def test_clip_cov_draws_each_eligible_token_about_as_often():
    batch, generator = scored(1, B=12), torch.Generator().manual_seed(0)
    options = {"covariance_low": 0.2, "covariance_high": 1.5, "share": 0.0, "generator": generator}
    eligible = sum(0.2 <= x <= 1.5 for x in covariances(batch).values())
    count = sum(
        (batch[3] & (factor("clip_cov", batch, **options) == 0)).double() for _ in range(600)
    )
    hit = count[count > 0]
    assert len(hit) == eligible > 4
    assert hit.min() > 0.4 * 600 / eligible and hit.max() < 1.8 * 600 / eligible


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", (0.0, 0.1, 0.5))
def test_kl_cov_holds_the_largest_covariances(seed, share):
    batch = scored(seed, B=12)
    logprob, old, advantage, mask, _ = batch
    zeroed = [torch.where(mask, x, 0.0) for x in (logprob, logprob - old, advantage[:, None])]
    found = kl_cov(Step(*zeroed, mask), share=share, penalty_coef=0.5)
    ordered = sorted(covariances(batch).items(), key=lambda pair: -pair[1])
    held = ordered[: max(1, math.floor(share * len(ordered)))]
    torch.testing.assert_close(found, table(batch, dict.fromkeys((p for p, _ in held), 0.5)))


@EVERY
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), garbage=st.sampled_from([NAN, math.inf, -1e30]))
def test_what_is_masked_and_the_order_of_the_rows_change_nothing(statistic, seed, garbage):
    batch = scored(seed)
    mask = batch[3]
    generator = torch.Generator().manual_seed(seed)
    whole = factor(statistic, batch, generator=generator)
    assert whole.isfinite().all() and not whole[~mask].any() and not whole.requires_grad
    spread = batch[2][:, None].expand(mask.shape)
    spoiled = [torch.where(mask, x, garbage) for x in (batch[0], batch[1], spread, batch[4])]
    generator.manual_seed(seed)
    again = factor(statistic, (*spoiled[:3], mask, spoiled[3]), generator=generator)
    assert again.equal(whole)
    order = torch.randperm(len(mask), generator=generator)
    other = factor(statistic, [x[order] for x in batch])
    if statistic not in DRAWS:
        torch.testing.assert_close(other, whole[order], rtol=1e-12, atol=1e-12)
    assert other.sum() == pytest.approx(whole.sum().item())


@EVERY
def test_packed_answers_have_the_factors_of_padded_ones(statistic):
    batch = scored(3)
    mask = batch[3]
    present = mask.flip(-1).cumsum(-1).flip(-1) > 0  # up to the last counted token, holes included
    bounds = torch.nn.functional.pad(present.sum(-1).cumsum(0), (1, 0))
    flat = [x[present] if x.ndim == 2 else x for x in batch]
    generator = torch.Generator().manual_seed(0)
    found = factor(statistic, flat, cu_seqlens=bounds, generator=generator)
    whole = factor(statistic, batch, generator=generator.manual_seed(0))
    if statistic in DRAWS:
        assert found.sum() == whole.sum()
    else:
        torch.testing.assert_close(found, whole[present], rtol=1e-12, atol=1e-12)


@EVERY
def test_on_policy_no_ratio_holds_a_token_and_a_batch_without_tokens_gives_zeros(statistic):
    logprob, _, advantage, mask, entropy = scored(0)
    found = factor(statistic, (logprob, logprob, advantage, mask, entropy))
    if statistic in OF_RATIOS:
        torch.testing.assert_close(found, mask.double(), rtol=1e-12, atol=0)
    else:
        assert set(found[mask].unique().tolist()) <= {0.0, 1.0}
    for shape in ((3, 4), (0, 4), (3, 0)):
        x, none = torch.full(shape, NAN), torch.zeros(shape, dtype=torch.bool)
        assert factor(statistic, (x, x, x, none, x)).equal(torch.zeros(shape))


def test_ratios_beyond_all_numbers_leave_a_finite_cap():
    d = torch.tensor([[1000.0, 0.0, -1000.0, 999.0]], dtype=torch.float64)
    old, mask = torch.zeros_like(d), torch.ones_like(d).bool()
    found = factor("ess", (d, old, torch.ones(1).double(), mask, old))
    share = (1 + math.exp(-1)) ** 2 / (4 * (1 + math.exp(-2)))
    torch.testing.assert_close(found, torch.tensor([[share, share, 0.0, share]]).double())


def test_low_precision_gives_float32_and_float64_stays():
    batch = scored(0)
    low = [x.bfloat16() if x.is_floating_point() else x for x in batch]
    assert factor("ess", low).dtype == torch.float32
    assert factor("ess", batch).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "grpo"}, "grpo: no statistic of the batch is declared"),
        ({"algorithm": "high_entropy", "entropy": None}, "entropy_quantile: entropy must be given"),
        ({"second_moment": -1.0}, "m2po: second_moment must not be negative, got -1.0"),
        ({"mask": torch.ones(2, 2)}, "factor: mask must be bool, got"),
        (
            {"advantage": torch.zeros(3)},
            r"factor: advantage must be \(2, 2\), \(2,\) or",
        ),
        ({"old_logprob": torch.zeros(2, 3)}, r"factor: old_logprob must be \(2, 2\) on cpu, got"),
        ({"logprob": torch.zeros(4)}, r"factor: logprob must be \(B, T\), or \(N,\) with cu_seql"),
        ({"share": 0.1}, "m2po: unknown coefficient 'share' of its statistic, expected one of sec"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(change, message):
    x = torch.zeros(2, 2)
    arguments = {"logprob": x, "old_logprob": x, "advantage": x, "mask": x == 0, "entropy": x}
    arguments = {**arguments, "algorithm": "m2po", **change}
    with pytest.raises((ValueError, TypeError), match=message):
        rlkern.statistics.factor(**arguments)


@EVERY
def test_a_token_whose_old_probability_nobody_knows_has_ratio_one(statistic):
    logprob, old, advantage, mask, entropy = scored(4)
    missing, filled = old.clone(), old.clone()
    at = tuple(mask.nonzero()[1].tolist())
    missing[at], filled[at] = NAN, logprob[at]
    found = [
        factor(statistic, (logprob, x, advantage, mask, entropy),
               generator=torch.Generator().manual_seed(1))
        for x in (missing, filled)
    ]  # fmt: skip
    assert found[0].isfinite().all() and found[0].equal(found[1])
