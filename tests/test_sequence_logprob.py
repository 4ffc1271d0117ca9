# SPDX-License-Identifier: Apache-2.0
"""Sums of log-probabilities over sequences, padded and packed."""

import math

import pytest
import torch

import rlkern
from rlkern import aggregate

pytestmark = pytest.mark.usefixtures("poisoned_memory")
NAN, ONES = math.nan, torch.ones(3)


def ragged(dtype=torch.float32, seed=3):
    """Returns logprob (4, 1500) and a mask with holes, its rows of very different length."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([1500, 0, 7, 613])
    mask = torch.rand(4, 1500, generator=random) < 0.8
    mask &= torch.arange(1500) < lengths[:, None]
    logprob = -5 * torch.rand(4, 1500, generator=random).to(dtype)
    return torch.where(mask, logprob, NAN), mask, lengths


def packed(x, lengths):
    """Returns the rows one after another, less their padding, and the bounds."""
    flat = torch.cat([row[:n] for row, n in zip(x, lengths.tolist())])
    return flat, torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def test_sums_over_sequences_are_those_of_float64_rounded_once():
    logprob, mask, _ = ragged()
    exact = torch.where(mask, logprob.double(), 0.0).sum(-1)
    assert rlkern.sequence_logprob(logprob, mask).equal(exact.float())
    mean = exact.float() / mask.sum(-1).clamp(min=1)
    torch.testing.assert_close(rlkern.mean_sequence_logprob(logprob, mask), mean)


def test_packed_sequences_have_the_bits_of_padded_ones():
    logprob, mask, lengths = ragged()
    flat, bounds = packed(logprob, lengths)
    flat_mask, _ = packed(mask, lengths)
    padded_leaf, flat_leaf = logprob.requires_grad_(), flat.detach().requires_grad_()
    padded = rlkern.sequence_logprob(padded_leaf, mask)
    for dtype in (torch.int64, torch.int32):
        together = rlkern.sequence_logprob(flat_leaf, flat_mask, cu_seqlens=bounds.to(dtype))
        assert together.equal(padded)
    upstream = torch.tensor([1.0, 2.0, -3.0, 0.5])
    padded.backward(upstream)
    together.backward(upstream)
    assert flat_leaf.grad.equal(packed(padded_leaf.grad, lengths)[0])
    assert padded_leaf.grad.equal(torch.where(mask, upstream[:, None], 0.0))


@pytest.mark.parametrize("f", (rlkern.sequence_logprob, rlkern.mean_sequence_logprob))
def test_the_gradient_of_sequence_sums_is_right(f):
    logprob, mask, lengths = (x[:, :20] if x.ndim > 1 else x.clamp(max=20) for x in ragged())
    logprob = torch.nan_to_num(logprob).double()
    flat, bounds = packed(logprob, lengths)
    flat_mask, _ = packed(mask, lengths)
    assert torch.autograd.gradcheck(lambda x: f(x, mask), logprob.requires_grad_())
    leaf = flat.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: f(x, flat_mask, cu_seqlens=bounds), leaf)
    leaf = torch.ones(2, 3, requires_grad=True)
    total = f(leaf, leaf > 0).sum()
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(total, leaf, create_graph=True)


@pytest.mark.parametrize("shape", ((0, 3), (2, 0)))
def test_no_sequences_and_no_tokens_are_fine(shape):
    leaf = torch.ones(shape, requires_grad=True)
    total = rlkern.sequence_logprob(leaf, leaf > 0)
    total.sum().backward()
    assert total.tolist() == [0.0] * shape[0] and leaf.grad.shape == shape


def test_bounds_outside_the_tokens_are_refused_before_anything_is_read(monkeypatch):
    monkeypatch.delenv("RLKERN_CHECK_VALUES", raising=False)
    x = torch.ones(4)
    for bounds in ([0, 5], [1, 4], [0, 3, 2, 4], [-1, 4]):
        with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the number of rows 4"):
            rlkern.sequence_logprob(x, x > 0, cu_seqlens=torch.tensor(bounds))


def sum_call(**changed):
    return rlkern.sequence_logprob(**{"logprob": ONES[None], "mask": ONES[None].bool(), **changed})


@pytest.mark.parametrize(
    "changed,sentence",
    (
        ({"logprob": ONES, "mask": ONES.bool()}, r"logprob must be \(B, T\), got \(3,\)"),
        (
            {"cu_seqlens": torch.tensor([0, 3])},
            r"with flat \(N,\) rows, got",
        ),
        ({"cu_seqlens": ONES}, "cu_seqlens must be int64 or int32, got"),
        ({"mask": ONES[None]}, "mask must be bool"),
    ),
)
def test_bad_input_ends_in_one_sentence(changed, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        sum_call(**changed)


def test_the_counted_tokens_of_packed_sequences_are_those_of_each():
    mask = torch.tensor([1, 0, 1, 1, 1, 0, 0, 1], dtype=torch.bool)
    bounds = torch.tensor([0, 3, 3, 5, 8])
    assert aggregate.counted_tokens(mask, cu_seqlens=bounds).tolist() == [2, 0, 2, 1]
    assert aggregate.counted_tokens(mask.reshape(2, 4)).tolist() == [3, 2]
    logprob = -torch.arange(1.0, 9.0)
    mean = rlkern.mean_sequence_logprob(logprob, mask, cu_seqlens=bounds)
    assert mean.tolist() == [-2.0, 0.0, -4.5, -8.0]
