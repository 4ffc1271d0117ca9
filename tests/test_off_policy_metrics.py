# SPDX-License-Identifier: Apache-2.0
"""The distance between sampler and trainer against its formulas written out."""

import math
import statistics

import pytest
import torch

import rlkern

NAN = math.nan
OLD = [[-1.0, -0.5, -2.0], [-0.1], [-3.0, -0.2]]
ROLLOUT = [[-0.8, -0.7, -2.5], [-0.1], [-1.0, -0.3]]


def mean(x):
    return statistics.fmean(x)


def expected():
    pairs = [list(zip(a, b)) for a, b in zip(OLD, ROLLOUT)]
    d = [[x - y for x, y in answer] for answer in pairs]
    every = [x for answer in d for x in answer]
    w = [math.exp(x) for x in every]
    gaps = [-mean(answer) for answer in d]
    return {
        "kl": -mean(every),
        "k3_kl": mean([math.exp(x) - 1 - x for x in every]),
        "chi2_token": mean([x * x for x in w]) - 1,
        "chi2_seq": mean([math.exp(sum(answer)) ** 2 for answer in d]) - 1,
        "eff_sample_size": mean(w) ** 2 / mean([x * x for x in w]),
        "training_ppl": mean([math.exp(-mean(answer)) for answer in OLD]),
        "rollout_ppl": mean([math.exp(-mean(answer)) for answer in ROLLOUT]),
        "log_ppl_diff": mean(gaps),
        "log_ppl_abs_diff": mean([abs(x) for x in gaps]),
        "ppl_ratio": mean([math.exp(x) for x in gaps]),
    }


def padded(rows, dtype=torch.float64):
    """Returns the answers with a masked token in each, and one that has no other."""
    full = [[x[0], NAN, *x[1:], *[NAN] * (3 - len(x))] for x in rows]
    return torch.tensor([*full, [NAN] * 4], dtype=dtype)


def test_every_metric_is_its_formula_padded_or_packed():
    old, rollout = padded(OLD), padded(ROLLOUT)
    mask = ~old.isnan()
    found = rlkern.off_policy_metrics(old, rollout, mask)
    values = {name: x.item() for name, x in found.items()}
    assert values == pytest.approx(expected(), rel=1e-12, abs=1e-14)
    assert all(x.shape == () and x.dtype == torch.float64 for x in found.values())
    bounds = torch.tensor([0, 4, 4, 8, 12, 16])
    flat = [x.flatten() for x in (old, rollout, mask)]
    packed = rlkern.off_policy_metrics(*flat, cu_seqlens=bounds)
    assert {k: x.item() for k, x in packed.items()} == pytest.approx(values, rel=1e-12, abs=1e-14)


def test_a_sampler_that_agrees_is_on_policy_and_nothing_counted_is_all_zeros():
    old = padded(OLD, torch.float32).requires_grad_()
    found = rlkern.off_policy_metrics(old, old, ~old.isnan())
    ones = {"eff_sample_size", "ppl_ratio"}
    for name, x in found.items():
        if "_ppl" not in name or "diff" in name:
            assert x.item() == (1.0 if name in ones else 0.0) and not x.requires_grad
    nothing = rlkern.off_policy_metrics(old, old, torch.zeros_like(old, dtype=torch.bool))
    assert not any(x.item() for x in nothing.values())


def test_long_answers_far_from_their_sampler_do_not_overflow():
    old, rollout = torch.full((1, 100), -1.0), torch.full((1, 100), -3.0)
    found = rlkern.off_policy_metrics(old, rollout, old < 0)
    assert found["chi2_seq"].item() == pytest.approx(math.exp(400), rel=1e-9)
