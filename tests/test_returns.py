# SPDX-License-Identifier: Apache-2.0
"""Returns against loops over counted tokens, and the identities between them."""

import math

import pytest
import torch

import rlkern
from rlkern.backends import _load

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def rollouts(B=6, T=13, seed=0):
    """Returns reward, value, log_ratio, mask with holes, bootstrap; NaN where nothing counts."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(B, T, generator=random) < 0.6
    mask[-1] = False
    tensors = torch.randn(3, B, T, generator=random, dtype=torch.float64)
    reward, value, log_ratio = tensors.masked_fill(~mask, math.nan)
    return reward, value, log_ratio, mask, torch.randn(B, generator=random, dtype=torch.float64)


def by_steps(mask, bootstrap, step, first=lambda after: (after, after)):
    """Returns what step(b, t, carried, following) gives from the last counted token to the first.

    step returns (result, what is carried on, the token's own quantity that the one before sees).
    """
    result = torch.zeros(mask.shape, dtype=torch.float64)
    for b in range(len(mask)):
        carried, following = first(bootstrap[b].item())
        for t in mask[b].nonzero().flatten().tolist()[::-1]:
            result[b, t], carried, following = step(b, t, carried, following)
    return result


def assert_same(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_a_discounted_return_is_the_loop_over_counted_tokens():
    reward, _, _, mask, bootstrap = rollouts()

    def step(b, t, carried, _):
        x = reward[b, t].item() + 0.9 * carried
        return x, x, None

    got = rlkern.discounted_return(reward, mask, discount=0.9, bootstrap=bootstrap)
    assert_same(got, by_steps(mask, bootstrap, step))
    plain = rlkern.discounted_return(reward, mask)
    assert plain.equal(rlkern.reward_to_go(reward, mask))


def test_truncated_advantages_are_the_loop_over_counted_tokens():
    reward, value, _, mask, bootstrap = rollouts()

    def step(b, t, carried, following):
        delta = reward[b, t].item() + 0.9 * following - value[b, t].item()
        x = delta + 0.9 * 0.8 * carried
        return x, x, value[b, t].item()

    got = rlkern.gae(reward, value, mask, discount=0.9, gae_lambda=0.8, bootstrap=bootstrap)
    assert_same(got.advantage, by_steps(mask, bootstrap, step, lambda after: (0.0, after)))


def test_vtrace_is_the_loop_over_counted_tokens():
    reward, value, log_ratio, mask, bootstrap = rollouts()

    def step(b, t, carried, following):
        ratio, v = math.exp(log_ratio[b, t].item()), value[b, t].item()
        delta = min(ratio, 1.5) * (reward[b, t].item() + 0.9 * following - v)
        x = v + delta + 0.9 * min(ratio, 0.8) * (carried - following)
        return x, x, v

    def advantage(b, t, carried, following):
        target, own, v = step(b, t, carried, following)
        rho = min(math.exp(log_ratio[b, t].item()), 1.5)
        return rho * (reward[b, t].item() + 0.9 * carried - v), own, v

    options = {"discount": 0.9, "rho_max": 1.5, "trace_max": 0.8, "bootstrap": bootstrap}
    got = rlkern.vtrace(log_ratio, reward, value, mask, **options)
    assert_same(got.target, by_steps(mask, bootstrap, step))
    assert_same(got.advantage, by_steps(mask, bootstrap, advantage))


def test_retrace_is_the_loop_over_counted_tokens():
    reward, value, log_ratio, mask, bootstrap = rollouts()
    q = torch.where(mask, value.nan_to_num().sin(), math.nan)

    def step(b, t, carried, following):
        v, trace, error = following
        x = reward[b, t].item() + 0.9 * (v + trace * error)
        own = 0.7 * min(1.0, math.exp(log_ratio[b, t].item()))
        return x, x, (value[b, t].item(), own, x - q[b, t].item())

    options = {"discount": 0.9, "gae_lambda": 0.7, "bootstrap": bootstrap}
    got = rlkern.retrace(log_ratio, reward, q, value, mask, **options)
    assert_same(got, by_steps(mask, bootstrap, step, lambda after: (after, (after, 0.0, 0.0))))


@pytest.mark.parametrize("n", (1, 2, 3, 5, 8, 100))
def test_an_n_step_return_is_the_loop_over_counted_tokens(n):
    reward, value, _, mask, bootstrap = rollouts()
    expected = torch.zeros_like(reward)
    for b in range(len(mask)):
        counted = mask[b].nonzero().flatten().tolist()
        for i, t in enumerate(counted):
            window = counted[i : i + n]
            total = sum(0.9**k * reward[b, s].item() for k, s in enumerate(window))
            more = counted[i + n : i + n + 1]
            after = value[b, more[0]].item() if more else bootstrap[b].item()
            expected[b, t] = total + 0.9 ** len(window) * after
    got = rlkern.n_step_return(reward, value, mask, n=n, discount=0.9, bootstrap=bootstrap)
    assert_same(got, expected)


def test_the_lambda_return_is_one_step_at_zero_and_monte_carlo_at_one():
    reward, value, _, mask, bootstrap = rollouts()
    options = {"discount": 0.9, "bootstrap": bootstrap}
    at_zero = rlkern.lambda_return(reward, value, mask, gae_lambda=0.0, **options)
    assert_same(at_zero, rlkern.n_step_return(reward, value, mask, n=1, **options))
    at_one = rlkern.lambda_return(reward, value, mask, gae_lambda=1.0, **options)
    assert_same(at_one, rlkern.discounted_return(reward, mask, **options))
    all_steps = rlkern.n_step_return(reward, value, mask, n=mask.shape[1], **options)
    assert_same(at_one, all_steps)


def test_gae_with_lambda_one_is_returns_minus_value_also_where_truncated():
    reward, value, _, mask, bootstrap = rollouts()
    options = {"discount": 0.9, "bootstrap": bootstrap}
    out = rlkern.gae(reward, value, mask, gae_lambda=1.0, **options)
    returns = rlkern.discounted_return(reward, mask, **options)
    assert_same(out.advantage, torch.where(mask, returns - value, 0.0))


def test_on_policy_vtrace_is_the_n_step_return_to_the_end():
    reward, value, _, mask, bootstrap = rollouts()
    options = {"discount": 0.9, "bootstrap": bootstrap}
    on_policy = torch.zeros_like(reward)
    out = rlkern.vtrace(on_policy, reward, value, mask, **options)
    n = mask.shape[1]
    assert_same(out.target, rlkern.n_step_return(reward, value, mask, n=n, **options))


def test_on_policy_retrace_without_a_control_variate_is_the_lambda_return():
    reward, value, _, mask, bootstrap = rollouts()
    options = {"discount": 0.9, "gae_lambda": 0.6, "bootstrap": bootstrap}
    got = rlkern.retrace(torch.zeros_like(value), reward, value, value, mask, **options)
    assert_same(got, rlkern.lambda_return(reward, value, mask, **options))


def calls(reward, value, log_ratio, mask, **options):
    """Returns every return by its name."""
    return {
        "discounted": rlkern.discounted_return(reward, mask, discount=0.9, **options),
        "n_step": rlkern.n_step_return(reward, value, mask, n=3, discount=0.9, **options),
        "lambda": rlkern.lambda_return(reward, value, mask, discount=0.9, **options),
        "vtrace": rlkern.vtrace(log_ratio, reward, value, mask, **options).advantage,
        "retrace": rlkern.retrace(log_ratio, reward, value, value, mask, **options),
    }


def test_packed_returns_have_the_bits_of_padded_ones(backend):
    reward, value, log_ratio, mask, bootstrap = (
        x.float() if x.is_floating_point() else x for x in rollouts()
    )
    lengths = torch.tensor([13, 1, 8, 13, 4, 2])
    keep = torch.arange(13) < lengths[:, None]
    mask &= keep
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    inputs = (reward, value, log_ratio, mask)
    padded = calls(*inputs, bootstrap=bootstrap)
    packed = calls(*(x[keep] for x in inputs), bootstrap=bootstrap, cu_seqlens=cu_seqlens)
    for name, x in packed.items():
        assert x.equal(padded[name][keep]), name
        assert x.isfinite().all() and padded[name][~mask].eq(0).all(), name


def test_results_are_constants_and_keep_the_shape_of_the_rewards():
    reward, value, log_ratio, mask, bootstrap = rollouts()
    leaves = [x.clone().requires_grad_() for x in (reward, value, log_ratio)]
    for x in calls(*leaves, mask, bootstrap=bootstrap).values():
        assert not x.requires_grad
    shape = (2, 3, 13)
    inputs = [x.reshape(shape) for x in (reward, value, log_ratio, mask)]
    deep = calls(*inputs, bootstrap=bootstrap.reshape(2, 3))
    flat = calls(reward, value, log_ratio, mask, bootstrap=bootstrap)
    assert all(deep[name].equal(flat[name].reshape(shape)) for name in flat)


def test_length_adaptive_lambdas_follow_the_counted_tokens_and_are_never_negative():
    mask = torch.arange(400) < torch.tensor([400, 100, 20, 10, 0])[:, None]
    expected = torch.tensor([0.95, 0.8, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert_same(rlkern.length_adaptive_lambda(mask), expected)
    bounds = torch.tensor([0, 400, 500, 520])
    packed = rlkern.length_adaptive_lambda(torch.ones(520).bool(), cu_seqlens=bounds)
    assert_same(packed, expected[:3])
    reward, value = torch.randn(2, 5, 400)
    per_row = rlkern.gae(reward, value, mask, gae_lambda=rlkern.length_adaptive_lambda(mask))
    alone = rlkern.gae(reward[1], value[1], mask[1], gae_lambda=0.8)
    assert_same(per_row.advantage[1], alone.advantage)


def test_bad_arguments_are_refused_in_a_sentence():
    x, yes = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(
        ValueError, match="n_step_return: n must be an integer of at least 1, got 0"
    ):
        rlkern.n_step_return(x, x, yes, n=0)
    with pytest.raises(ValueError, match="vtrace: rho_max must be greater than 0, got -1"):
        rlkern.vtrace(x, x, x, yes, rho_max=-1)
    with pytest.raises(ValueError, match=r"retrace: action_value must be \(2, 3\) on cpu, got"):
        rlkern.retrace(x, x, x[:1], x, yes)
    with pytest.raises(ValueError, match="discounted_return: reward must be finite where mask"):
        rlkern.discounted_return(x * math.nan, yes)
    with pytest.raises(ValueError, match="alpha must be greater than 0, got 0"):
        rlkern.length_adaptive_lambda(yes, alpha=0)
