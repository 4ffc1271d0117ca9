# SPDX-License-Identifier: Apache-2.0
"""Ratios of sequences in the Triton kernels: padded and packed, of any length, in one order."""

import pytest
import torch

pytest.importorskip("triton")
from rlkern.backends import eager as reference
from rlkern.backends import triton as kernels  # noqa: E402
from rlkern.backends.eager.token_objective import LEVELS, Objective, Rows  # noqa: E402
from rlkern.testing.traffic import traffic  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
SEQUENCE_LEVELS = [level for level in LEVELS if level != "token"]
EPS = torch.finfo(torch.float32).eps


def objective_of(level, gate="ppo_clip", kl="importance_k3"):
    """Returns an objective with clips that some of the sequences pass."""
    return Objective(gate, level, kl, (0.003, 0.004, 0.0, 0.0), 0.1, 0.01)


def token_rows(B, T, seed=0):
    """Returns (logprob, entropy, rows) of (B, T) tokens, a third of them of weight 0."""
    random = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(B, T, generator=random)

    logprob = -3 * torch.rand(B, T, generator=random)
    weight = torch.rand(B, T, generator=random) * (normal() > -0.4)
    rows = (normal(), weight, logprob + 0.01 * normal(), logprob + 0.3 * normal(), normal().abs())
    entropy = torch.rand(B, T, generator=random).to(DEVICE)
    return logprob.to(DEVICE), entropy, Rows(*(x.to(DEVICE) for x in rows))


def changed(batch, function):
    """Returns the batch with a function applied to every tensor."""
    logprob, entropy, rows = batch
    rows = Rows(*(None if x is None else function(x) for x in rows))
    return function(logprob), function(entropy), rows


def assert_no_worse(batch, cu_seqlens, objective):
    """Asserts error ≤ 2 × the reference's own error + 4 ulp of what a sum is made of."""
    got = kernels.token_objective(*batch, cu_seqlens, objective)
    eager = reference.token_objective(*batch, cu_seqlens, objective)
    cu_cpu = None if cu_seqlens is None else cu_seqlens.cpu()
    wide = changed(batch, lambda x: x.cpu().double())
    oracle = reference.token_objective(*wide, cu_cpu, objective)
    # Terms of either sign: a sum of them is no more exact than they are together.
    sizes = [oracle[2].abs().sum(), oracle[1].abs(), *(x.abs().max() for x in oracle[2:])]
    for name, x, e, exact, size in zip(
        ("loss", "metrics", "grad_logprob", "grad_entropy"), got, eager, oracle, sizes
    ):
        error, own = ((y.cpu().double() - exact).abs() for y in (x, e))
        wrong = ~((error <= 2 * own.max() + 4 * EPS * size) | (x.cpu().double() == exact))
        assert not wrong.any(), (name, error.max(), own.max())


@pytest.mark.parametrize("gate", ["ppo_clip", "dro", "vespo"])
@pytest.mark.parametrize("level", LEVELS)
def test_padded_sequences_have_the_loss_and_slopes_of_the_reference(level, gate):
    assert_no_worse(token_rows(3, 40), None, objective_of(level, gate))


@pytest.mark.parametrize("level", SEQUENCE_LEVELS)
def test_packed_sequences_of_every_length_have_those_of_the_reference(level):
    # Empty ones, one token, exactly a block, one more than a block, several blocks.
    cu_seqlens = torch.tensor([0, 0, 1, 513, 513, 1026, 2600, 2600], device=DEVICE)
    assert_no_worse(token_rows(1, 2600), cu_seqlens, objective_of(level))


@pytest.mark.parametrize("level", SEQUENCE_LEVELS)
def test_a_sequence_has_the_same_bits_padded_packed_and_in_any_batch(level):
    batch = token_rows(3, 600)
    rows = batch[2]
    rows.weight[:, 570:] = 0  # padding
    padded = kernels.token_objective(*batch, None, objective_of(level))[2:]
    flat = changed(batch, lambda x: x[:, :570].reshape(1, -1).contiguous())
    cu_seqlens = torch.tensor([0, 570, 1140, 1710], device=DEVICE)
    packed = kernels.token_objective(*flat, cu_seqlens, objective_of(level))[2:]
    alone = changed(batch, lambda x: x[1:2].contiguous())
    single = kernels.token_objective(*alone, None, objective_of(level))[2:]
    for x, y, z in zip(padded, packed, single, strict=True):
        assert torch.equal(x[:, :570].reshape(1, -1), y) and torch.equal(x[1:2], z)


@pytest.mark.parametrize("level", SEQUENCE_LEVELS)
def test_tokens_of_weight_zero_are_in_no_sequence_whatever_they_hold(level):
    batch = token_rows(2, 30)
    weight = batch[2].weight
    weight[1] = 0
    clean = kernels.token_objective(*batch, None, objective_of(level))
    garbage = changed(batch, lambda x: torch.where(weight == 0, torch.nan, x))
    garbage = (*garbage[:2], garbage[2]._replace(weight=weight))
    dirty = kernels.token_objective(*garbage, None, objective_of(level))
    assert all(torch.equal(x, y) for x, y in zip(clean, dirty, strict=True))
    assert (clean[2][weight == 0] == 0).all() and (clean[3][weight == 0] == 0).all()


@pytest.mark.parametrize("level", SEQUENCE_LEVELS)
def test_without_an_old_policy_every_sequence_has_ratio_one(level):
    logprob, entropy, rows = token_rows(2, 30)
    rows = rows._replace(old_logprob=None, ref_logprob=None, correction=None)
    assert_no_worse((logprob, entropy, rows), None, objective_of(level))


@pytest.mark.skipif(not kernels.INTERPRETED, reason="counts accesses of interpreted kernels")
def test_bounds_beyond_the_rows_touch_nothing_beyond_them():
    batch = token_rows(1, 10)
    cu_seqlens = torch.tensor([-5, 4, 50])
    with traffic() as moved:
        grads = kernels.token_objective(*batch, cu_seqlens, objective_of("sequence"))[2:]
    assert moved.outside == 0
    assert all((moved.times_stored(x) == 1).all() for x in grads)
