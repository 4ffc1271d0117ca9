# SPDX-License-Identifier: Apache-2.0
"""Tokens whose probability sampler or trainer does not know: no correction, no verdict by them."""

import math

import pytest
import torch

import rlkern
from rlkern.ops.rollout_correction import CORRECTIONS

NAN = math.nan
KINDS = tuple(CORRECTIONS)
UNKNOWN = {
    "truncate": ((0.0, 2.0), [[2.0, 1.0, 0.5], [1.0, 0.25, 0.0], [1.0, 0.0, 0.0]]),
    "mask": ((2.0, 5.0), [[4.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    "sequence_truncate": ((0.0, 1.5), [[1.5, 1.0, 1.5], [1.0, 0.25, 0.0], [1.0, 0.0, 0.0]]),
    "sequence_mask": ((1.5, 3.0), [[2.0, 1.0, 2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    "geometric_mask": ((1.4, 1.5), [[4.0, 1.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    "binary_kl_mask": ((0.0, 0.1), [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    "total_variation_mask": ((0.0, 0.1), [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
}


def unknown_batch(unknown):
    """Returns (old, rollout, mask) whose unknown tokens are NaN by the sampler, trainer or both."""
    w = torch.tensor([[4.0, NAN, 0.5], [NAN, 0.25, 1.0], [NAN, 1.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()
    old = torch.full_like(w, -1.0)
    rollout = old - w.log()
    if unknown != "sampler":
        old = torch.where(w.isnan(), NAN, old)
    if unknown == "trainer":
        rollout = rollout.nan_to_num(-1.0)
    return old, rollout, mask


@pytest.mark.parametrize("unknown", ("sampler", "trainer", "both"))
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_token_is_not_corrected_and_judges_no_answer(kind, unknown):
    (low, high), expected = UNKNOWN[kind]
    got = rlkern.rollout_correction(*unknown_batch(unknown), kind=kind, low=low, high=high)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("unknown", ("sampler", "trainer", "both"))
@pytest.mark.parametrize("over", ("token", "sum", "mean", "max"))
def test_an_unknown_token_is_dropped_only_with_its_answer(over, unknown):
    rows = unknown_batch(unknown)  # k1 = −log w: −1.39, ?, 0.69; ?, 1.39; ?
    options = {"estimator": "k1", "over": over}
    got = rlkern.rollout_rejection(*rows, low=0.5, high=1.5, **options).tolist()
    inside = {"token": [[False, True, True], [True, True, False]],
              "max": [[False] * 3, [True, True, False]],
              "sum": [[False] * 3, [True, True, False]],
              "mean": [[False] * 3, [True, True, False]]}[over]  # fmt: skip
    assert got == [*inside, [True, False, False]]
    got = rlkern.rollout_rejection(*rows, low=-1.5, high=1.0, **options).tolist()
    last = [True, False, False] if over == "token" else [False] * 3
    assert got == [[True] * 3, last, [True, False, False]]


def test_an_unknown_token_leaves_its_answers_distance_as_it_is():
    old, rollout, mask = unknown_batch("sampler")  # −log w on average: −0.35, 1.39, nothing
    bad = -torch.ones_like(old)
    kept = rlkern.off_policy_sequence_mask(old, rollout, bad, mask, threshold=0.7)
    assert kept.tolist() == [[True] * 3, [False] * 3, [True, False, False]]


def test_bounds_below_one_do_not_move_the_factor_of_an_unknown_token():
    got = rlkern.rollout_correction(*unknown_batch("sampler"), kind="truncate", high=0.5)
    assert got.tolist() == [[0.5, 1.0, 0.5], [1.0, 0.25, 0.0], [1.0, 0.0, 0.0]]
