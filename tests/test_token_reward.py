# SPDX-License-Identifier: Apache-2.0
"""KL by token, and rewards on tokens, against their formulas written out."""

import math

import pytest
import torch

import rlkern
from rlkern.ops.token_kl import ESTIMATORS

NAN = math.nan
MASK = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
VALUE = {
    "k1": lambda d, r: d,
    "k2": lambda d, r: d * d / 2,
    "k3": lambda d, r: math.exp(-d) - 1 + d,
    "abs": lambda d, r: abs(d),
    "k1+": lambda d, r: d,
    "k3+": lambda d, r: math.exp(-d) - 1 + d,
    "importance_k1": lambda d, r: r * d,
    "importance_k3": lambda d, r: r * (math.exp(-d) - 1 + d),
}
# With respect to log π; r = π/π_old has the derivative r.
SLOPE = {
    "k1": lambda d, r: 1.0,
    "k2": lambda d, r: d,
    "k3": lambda d, r: 1 - math.exp(-d),
    "abs": lambda d, r: math.copysign(1.0, d),
    "k1+": lambda d, r: d,
    "k3+": lambda d, r: d,
    "importance_k1": lambda d, r: r * (d + 1),
    "importance_k3": lambda d, r: r * d,
}
OF_A_RATIO = [name for name in VALUE if "importance" in name]


def scores(dtype=torch.float64):
    """Returns log π, log π_ref and log π_old, NaN where nothing counts."""
    random = torch.Generator().manual_seed(3)
    found = -2 * torch.rand(3, *MASK.shape, generator=random, dtype=dtype)
    return found.masked_fill(~MASK, NAN).unbind()


def close(got, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def at_each_token(formula, *rows):
    found = torch.zeros(MASK.shape, dtype=torch.float64)
    for b, t in MASK.nonzero().tolist():
        found[b, t] = formula(*(x[b, t].item() for x in rows))
    return found


def test_every_estimator_is_tested():
    assert set(VALUE) == set(SLOPE) == set(ESTIMATORS)


@pytest.mark.parametrize("on_policy", (True, False))
@pytest.mark.parametrize("estimator", VALUE)
def test_the_kl_of_a_token_and_its_gradient_are_the_formulas(estimator, on_policy):
    logprob, ref, old = scores()
    d, r = logprob - ref, torch.ones_like(ref) if on_policy else (logprob - old).exp()
    leaf, constants = logprob.clone().requires_grad_(), [ref.clone().requires_grad_()]
    option = {} if on_policy else {"old_logprob": old.clone().requires_grad_()}
    got = rlkern.token_kl(leaf, *constants, mask=MASK, estimator=estimator, **option)
    close(got.detach(), at_each_token(VALUE[estimator], d, r))
    got.sum().backward()
    close(leaf.grad, at_each_token(SLOPE[estimator], d, r))
    assert all(x.grad is None for x in (*constants, *option.values()))
    flat = [x[MASK] for x in (logprob, ref)]
    option = {name: x.detach()[MASK] for name, x in option.items()}
    assert rlkern.token_kl(*flat, estimator=estimator, **option).equal(got.detach()[MASK])


@pytest.mark.parametrize("estimator", [name for name in VALUE if name not in OF_A_RATIO])
def test_a_limit_holds_the_difference_and_takes_the_gradient_away(estimator):
    ref, leaf = torch.zeros(1, 4).double(), torch.tensor([[-3.0, -0.5, 0.5, 3.0]]).double()
    leaf.requires_grad_()
    got = rlkern.token_kl(leaf, ref, estimator=estimator, limit=1.0)
    close(got[0].detach(), [VALUE[estimator](d, 1.0) for d in (-1.0, -0.5, 0.5, 1.0)])
    got.sum().backward()
    slope = SLOPE[estimator]
    close(leaf.grad[0], [0.0, slope(-0.5, 1.0), slope(0.5, 1.0), 0.0])


def test_low_precision_is_computed_in_float32_and_float64_stays():
    for dtypes, expected in (
        ((torch.bfloat16, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float32), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
    ):
        a, b = (torch.tensor([-1.0], dtype=dtype) for dtype in dtypes)
        assert rlkern.token_kl(a, b).dtype == expected


def test_the_reward_is_at_the_last_counted_token_and_the_kl_at_each():
    kl = torch.tensor([[0.5, 0.25, NAN, 2.0, NAN], [1.0, *[NAN] * 4], [NAN] * 5]).double()
    reward = torch.tensor([3.0, NAN, 7.0]).double()
    got = rlkern.token_reward(reward, MASK, kl=kl, kl_coef=0.1)
    close(got[0], [-0.1 * 0.5, -0.1 * 0.25, 0.0, 3.0 - 0.1 * 2.0, 0.0])
    assert got[1].isnan().tolist() == [True, False, False, False, False]
    assert got[1].nansum() == 0 and not got[2].any()
    plain = rlkern.token_reward(reward, MASK)
    assert plain[0].tolist() == [0, 0, 0, 3, 0] and plain.dtype == torch.float64
    lengths = torch.tensor([0, 5, 5, 10, 15])
    packed = rlkern.token_reward(
        torch.tensor([3.0, 5.0, NAN, 7.0]).double(), MASK.flatten(), kl=kl.flatten(), kl_coef=0.1,
        cu_seqlens=lengths,
    )  # fmt: skip
    torch.testing.assert_close(packed, got.flatten(), equal_nan=True, rtol=0, atol=0)


def test_the_last_counted_token_is_found_behind_holes_and_in_empty_rows():
    got = rlkern.last_counted(MASK)
    assert got.nonzero().tolist() == [[0, 3], [1, 0]]
    bounds = torch.tensor([0, 5, 5, 10, 15])
    assert rlkern.last_counted(MASK.flatten(), cu_seqlens=bounds).equal(got.flatten())
    assert rlkern.last_counted(MASK[None]).equal(got[None])
    assert rlkern.last_counted(MASK[:, :0]).shape == (3, 0)


@pytest.mark.parametrize(
    "call,error,sentence",
    (
        (lambda x: rlkern.token_kl(x, x, estimator="k4"), ValueError, "one of k1, k2, .*'k4'"),
        (lambda x: rlkern.token_kl(x, x, limit=0), ValueError, "limit must be greater than 0"),
        (lambda x: rlkern.token_kl(x, x, limit="a"), TypeError, "limit must be a number, got 'a'"),
        (lambda x: rlkern.token_kl(x, x[:1]), ValueError, r"ref_logprob must be \(3, 5\)"),
        (lambda x: rlkern.token_kl(x, None), TypeError, "ref_logprob must be float16.*NoneType"),
        (lambda x: rlkern.token_kl(x, x, mask=x), TypeError, "mask must be bool"),
        (lambda x: rlkern.token_kl(x, x, old_logprob=x.long()), TypeError, "old_logprob must be"),
        (lambda x: rlkern.token_kl(x, x, estimator="importance_k3", limit=9.0), ValueError,
         "limit must be None with estimator 'importance_k3', got 9.0"),
        (lambda x: rlkern.token_reward(x, MASK), ValueError, r"reward must be \(3,\) on cpu"),
        (lambda x: rlkern.token_reward(x[:, 0], MASK, kl=x), ValueError, "given together"),
        (lambda x: rlkern.token_reward(x[:, 0], MASK, kl_coef=1.0), ValueError, "given together"),
        (lambda x: rlkern.token_reward(x[:, 0], MASK, kl=x[0], kl_coef=1.0), ValueError, "kl must"),
        (lambda x: rlkern.token_reward(x[:, 0], MASK[0]), ValueError, r"mask must be \(B, T\)"),
        (lambda x: rlkern.last_counted(x), TypeError, "mask must be bool"),
        (lambda x: rlkern.last_counted(MASK[0, 0]), ValueError, "must have a time dimension"),
    ),
)  # fmt: skip
def test_a_bad_argument_is_refused_with_what_was_expected(call, error, sentence):
    with pytest.raises(error, match=f"^(token_kl|token_reward|last_counted): .*{sentence}"):
        call(torch.zeros(3, 5))
