# SPDX-License-Identifier: Apache-2.0
"""Kept sets, softcap and temperature: what they must not change, and what they amount to."""

import pytest
import torch
from batch_helpers import BACKENDS, loss_and_gradient, same_bits, scores_and_gradient

import rlkern
from rlkern.testing.cases import Case, make_batch

DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
NAMES = pytest.mark.parametrize("name", ("grpo", "gspo"))


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, poisoned_memory):
    """Runs every test on each backend, in memory that was NaN."""
    with rlkern.use_backend(request.param):
        yield request.param


def batch_of(dtype=torch.float64, V=37, **options):
    case = Case("softmax", **{"B": 3, "T": 4, "V": V, "temperature": "rows", **options})
    batch = make_batch(case, dtype)
    return batch.to("cpu", torch.float64) if dtype == torch.float64 else batch


def everything(batch, name="grpo"):
    return *scores_and_gradient(batch), *loss_and_gradient(batch, algorithm=name)


def assert_same(got, expected, rtol=1e-10, atol=1e-12):
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


@NAMES
@pytest.mark.parametrize("softcap", (None, 4.0))
def test_a_kept_set_of_the_whole_vocabulary_is_none(name, softcap):
    batch = batch_of(keep="whole", softcap=softcap)
    kept = everything(batch, name)
    batch.keep = None
    assert_same(kept, everything(batch, name))


@DTYPES
@NAMES
def test_rows_that_name_nothing_have_the_bits_of_rows_without_a_kept_set(name, dtype):
    batch = batch_of(dtype)
    plain = everything(batch, name)
    batch.keep = torch.full((3, 4, 6), -1)
    assert same_bits(everything(batch, name), plain)


@NAMES
@pytest.mark.parametrize("keep", ("narrow", "without_token", "one"))
def test_a_kept_set_is_banning_the_others(name, keep):
    batch = batch_of(keep=keep)
    kept = everything(batch, name)
    allowed = torch.zeros(3, 4, 38, dtype=torch.bool)
    allowed.scatter_(-1, batch.keep % 38, True).scatter_(-1, batch.token[..., None], True)
    allowed = allowed[..., :37] | (batch.keep == -1).all(-1, keepdim=True)
    batch.logits, batch.keep = batch.logits.masked_fill(~allowed, -torch.inf), None
    assert_same(kept, everything(batch, name))
    assert kept[4][~allowed].eq(0).all() and kept[7][~allowed].eq(0).all()


def test_the_order_of_a_kept_set_and_its_unused_places_change_no_probability():
    batch = batch_of(keep="narrow")
    expected = everything(batch)
    batch.keep = torch.cat([batch.keep.flip(-1), torch.full((3, 4, 5), -1)], -1)
    assert_same(everything(batch), expected)


@DTYPES
def test_kept_ids_of_32_and_64_bits_mean_the_same(dtype):
    batch = batch_of(dtype, keep="narrow")
    expected = everything(batch)
    batch.keep = batch.keep.int()
    assert same_bits(everything(batch), expected)


def test_logits_outside_the_kept_set_are_not_looked_at():
    batch = batch_of(keep="narrow", mask="full")
    expected = everything(batch)
    named = (batch.keep != -1).any(-1, keepdim=True)
    kept = torch.zeros(3, 4, 38, dtype=torch.bool)
    kept.scatter_(-1, batch.keep % 38, True).scatter_(-1, batch.token[..., None], True)
    batch.logits = torch.where(named & ~kept[..., :37], torch.nan, batch.logits)
    assert_same(everything(batch), expected)


def test_the_only_token_of_a_kept_set_is_certain():
    batch = batch_of(mask="full")
    batch.keep = batch.token[..., None].clone()
    logprob, entropy, _, squares, gradient = scores_and_gradient(batch)
    assert logprob.eq(0).all() and entropy.eq(0).all() and squares.eq(1).all()
    alone = torch.zeros_like(gradient).scatter(-1, batch.keep, 1.0).bool()
    assert gradient[~alone].eq(0).all()


@NAMES
def test_a_softcap_that_no_logit_comes_near_is_none(name):
    batch = batch_of(softcap=1e7)
    capped = everything(batch, name)
    batch.softcap = None
    assert_same(capped, everything(batch, name), rtol=1e-9)


def test_a_softcap_is_tanh_of_the_logits_with_its_chain_rule():
    batch = batch_of(softcap=2.0, values="wide", mask="full")
    batch.logits /= 10
    *scores, gradient = scores_and_gradient(batch)
    tanh = torch.tanh(batch.logits / 2.0)
    batch.logits, batch.softcap = 2.0 * tanh, None
    *plain, outer = scores_and_gradient(batch)
    assert_same(scores, plain)
    torch.testing.assert_close(gradient, outer * (1 - tanh.square()), rtol=1e-9, atol=1e-14)


@DTYPES
def test_banned_tokens_stay_banned_under_a_softcap(dtype):
    batch = batch_of(dtype, V=515, softcap=3.0, values="minus_infinity", mask="full")
    banned = batch.logits == -torch.inf
    logprob, _, _, squares, gradient = scores_and_gradient(batch)
    assert gradient[banned].eq(0).all() and gradient[~banned].ne(0).all()
    assert logprob.isfinite().all() and squares.isfinite().all()
    possible = (~banned).sum(-1).log().double()
    assert (logprob.double() > -possible - 6 / batch.temperature.double()).all()
