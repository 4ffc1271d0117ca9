# SPDX-License-Identifier: Apache-2.0
"""Identities between operations, and plain Python loops that say the same."""

import math
import time

import pytest
import torch

import rlkern
from rlkern.backends import _load
from rlkern.testing.cases import Case, make_batch

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
NATIVE = pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ extension is not built")
KINDS = ("normalized", "centered", "leave_one_out")


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def rollouts(B=5, T=11, seed=0):
    """Returns reward, value and a mask with holes and an empty row, NaN where it is False."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(B, T, generator=random) < 0.6
    mask[-1] = False
    rows = torch.randn(2, B, T, generator=random, dtype=torch.float64)
    reward, value = rows.masked_fill(~mask, math.nan)
    return reward, value, mask


def in_steps(reward, value, mask, discount, gae_lambda):
    """Returns the advantages by the definition: a loop over counted tokens, last to first."""
    advantage = torch.zeros_like(reward)
    for b in range(len(mask)):
        carried = following = 0.0
        for t in mask[b].nonzero().flatten().tolist()[::-1]:
            delta = reward[b, t].item() + discount * following - value[b, t].item()
            carried = delta + discount * gae_lambda * carried
            advantage[b, t], following = carried, value[b, t].item()
    return advantage


def discounted(reward, mask, discount):
    """Returns Σ discount^k · reward over counted tokens, by a loop."""
    return in_steps(reward, torch.zeros_like(reward), mask, discount, 1.0)


@pytest.mark.parametrize("discount,gae_lambda", ((1.0, 0.95), (0.9, 0.8), (0.5, 0.0), (0.9, 1.0)))
def test_gae_is_the_loop_over_counted_tokens(backend, discount, gae_lambda):
    reward, value, mask = rollouts()
    out = rlkern.gae(reward, value, mask, discount=discount, gae_lambda=gae_lambda)
    torch.testing.assert_close(
        out.advantage, in_steps(reward, value, mask, discount, gae_lambda), rtol=1e-12, atol=1e-12
    )
    assert out.advantage[~mask].eq(0).all() and out.target[~mask].eq(0).all()


def test_gae_with_lambda_one_is_returns_minus_value(backend):
    reward, value, mask = rollouts()
    out = rlkern.gae(reward, value, mask, discount=0.9, gae_lambda=1.0)
    returns = discounted(reward, mask, 0.9)
    torch.testing.assert_close(out.target, returns, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.advantage[mask], (returns - value)[mask])


def test_gae_with_lambda_zero_is_the_one_step_error(backend):
    reward, value, _ = (torch.nan_to_num(x) for x in rollouts())
    full = torch.ones_like(reward, dtype=torch.bool)
    following = torch.nn.functional.pad(value[:, 1:], (0, 1))
    out = rlkern.gae(reward, value, full, discount=0.9, gae_lambda=0.0)
    torch.testing.assert_close(out.advantage, reward + 0.9 * following - value)


def test_the_advantage_of_a_perfect_value_function_is_zero(backend):
    reward, _, mask = rollouts()
    value = discounted(reward, mask, 0.9)
    out = rlkern.gae(reward, value, mask, discount=0.9, gae_lambda=0.7)
    torch.testing.assert_close(out.advantage, torch.zeros_like(value), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", ((1,), (1, 1), (3, 1), (7, 129), (2, 3, 17)))
def test_a_reverse_scan_is_the_loop_over_time(backend, shape):
    random = torch.Generator().manual_seed(1)
    bias, decay = torch.randn(2, *shape, generator=random, dtype=torch.float64)
    decay[..., ::5] = 0
    expected, carried = torch.empty_like(bias), torch.zeros(shape[:-1], dtype=bias.dtype)
    for t in reversed(range(shape[-1])):
        carried = bias[..., t] + decay[..., t] * carried
        expected[..., t] = carried
    torch.testing.assert_close(rlkern.reverse_scan(bias, decay), expected, rtol=1e-11, atol=1e-11)


def test_a_scan_of_ones_counts_and_a_decay_of_zero_cuts_even_infinities(backend):
    assert rlkern.reverse_scan(*torch.ones(2, 5)).tolist() == [5, 4, 3, 2, 1]
    bias = torch.tensor([1.0, 2.0, math.inf, math.nan])
    assert rlkern.reverse_scan(bias, torch.tensor([0.5, 0.0, 0.0, 1.0]))[:2].tolist() == [2, 2]


@NATIVE
def test_a_million_steps_are_scanned_in_seconds_of_one_processor():
    discount, T = 0.999999, 10**6
    reward = torch.ones(1, T, dtype=torch.float64)
    start = time.process_time()  # unlike the clock's, not longer on a busy machine
    with rlkern.use_backend("cpu"):
        returns = rlkern.reverse_scan(reward, discount * reward)
    assert time.process_time() - start < 5
    expected = (1 - discount**T) / (1 - discount)
    assert returns[0, 0].item() == pytest.approx(expected, rel=1e-9)


def by_group(reward, group, kind, eps, ddof):
    """Returns the advantages by the definition, group by group."""
    result = [0.0] * len(reward)
    for g in set(group):
        members = [i for i, h in enumerate(group) if h == g and not math.isnan(reward[i])]
        n, total = len(members), sum(reward[i] for i in members)
        if n < 2:
            continue
        variance = sum((reward[i] - total / n) ** 2 for i in members) / max(n - ddof, 1)
        for i in members:
            others = (total - reward[i]) / (n - 1)
            result[i] = {
                "normalized": (reward[i] - total / n) / (math.sqrt(variance) + eps),
                "centered": reward[i] - total / n,
                "leave_one_out": reward[i] - others,
            }[kind]
    return result


@pytest.mark.parametrize("ddof", (0, 1))
@pytest.mark.parametrize("kind", KINDS)
def test_group_advantages_are_those_of_a_loop_over_groups(backend, kind, ddof):
    random = torch.Generator().manual_seed(2)
    reward = torch.randn(60, generator=random, dtype=torch.float64)
    group = torch.randint(-3, 9, (60,), generator=random) * 10**12
    reward[::7] = math.nan
    reward[group == 0] = math.nan  # a group of which nothing is known
    reward[group == 10**12] = 1 / 3  # a group that agrees
    got = rlkern.group_advantage(reward, group, kind=kind, eps=1e-4, ddof=ddof)
    expected = by_group(reward.tolist(), group.tolist(), kind, 1e-4, ddof)
    torch.testing.assert_close(got, torch.tensor(expected).double(), rtol=1e-6, atol=1e-9)
    assert got[reward.isnan()].eq(0).all() and got[group == 10**12].abs().max() < 1e-9


def test_leave_one_out_is_centered_times_n_over_n_minus_one(backend):
    for n in (2, 3, 8):
        reward, group = torch.arange(n).double().square(), torch.zeros(n, dtype=torch.int32)
        centered = rlkern.group_advantage(reward, group, kind="centered")
        got = rlkern.group_advantage(reward, group, kind="leave_one_out")
        torch.testing.assert_close(got, centered * n / (n - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_advantages_of_a_group_sum_to_zero_and_a_lone_answer_has_none(backend, kind):
    reward, group = torch.tensor([0.3, 2.0, -1.0, 9.0]), torch.tensor([4, 4, 4, 2])
    advantage = rlkern.group_advantage(reward, group, kind=kind)
    assert advantage[:3].sum().item() == pytest.approx(0, abs=1e-6) and advantage[3] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_agrees_has_no_advantage_however_small_eps_is(backend, kind):
    group = torch.arange(7).repeat_interleave(torch.arange(2, 9))
    for reward in (0.1, 0.7, 1 / 3, 123.456, 1e6 / 3):  # sums of none of them are exact
        rewards = torch.full(group.shape, reward)
        assert rlkern.group_advantage(rewards, group, kind=kind, eps=1e-12).eq(0).all()


def policy_gradient(batch, algorithm, **options):
    leaf = batch.logits.detach().clone().requires_grad_()
    out = rlkern.policy_loss(
        leaf, batch.token, batch.advantage, batch.mask, algorithm=algorithm, **options
    )
    out.loss.backward()
    return out, leaf.grad


def test_ppo_without_an_old_policy_has_the_gradient_of_reinforce(backend):
    batch = make_batch(Case("identities", B=3, T=4, V=23), torch.float64)
    _, ppo = policy_gradient(batch, "ppo")
    _, plain = policy_gradient(batch, "reinforce")
    torch.testing.assert_close(ppo, plain, rtol=1e-12, atol=1e-14)


def test_on_policy_grpo_loses_minus_the_mean_advantage_of_the_sequences(backend):
    case = Case("identities", B=3, T=4, V=23, sequence_advantage=True)
    batch = make_batch(case, torch.float64)
    out, _ = policy_gradient(batch, "grpo")
    assert out.loss.item() == pytest.approx(-batch.advantage.mean().item())


def test_clips_too_wide_to_hold_leave_the_importance_weighted_surrogate(backend):
    batch = make_batch(Case("identities", B=3, T=4, V=23), torch.float64)
    old, mask = batch.old_logprob, batch.mask
    out, _ = policy_gradient(batch, "ppo", old_logprob=old, clip_low=1.0, clip_high=1e6)
    logprob = rlkern.token_logprob(batch.logits, batch.token, mask=mask).logprob
    surrogate = ((logprob - old).exp() * batch.advantage)[mask].mean()
    assert out.loss.item() == pytest.approx(-surrogate.item())


@pytest.mark.parametrize("temperature", (1.0, 0.6))
def test_token_logprob_is_log_softmax_gathered(backend, temperature):
    batch = make_batch(Case("identities", B=3, T=4, V=257), torch.float64)
    log_p = torch.log_softmax(batch.logits / temperature, -1)
    out = rlkern.token_logprob(batch.logits, batch.token, temperature=temperature)
    torch.testing.assert_close(out.logprob, log_p.gather(-1, batch.token[..., None])[..., 0])
    torch.testing.assert_close(out.entropy, -(log_p.exp() * log_p).sum(-1))
    torch.testing.assert_close(out.lse, (batch.logits / temperature).logsumexp(-1))


def test_probabilities_of_all_tokens_sum_to_one(backend):
    logits = torch.randn(1, 31, dtype=torch.float64).expand(31, 31).contiguous()
    out = rlkern.token_logprob(logits, torch.arange(31))
    assert out.logprob.exp().sum().item() == pytest.approx(1)
    assert -(out.logprob.exp() * out.logprob).sum().item() == pytest.approx(out.entropy[0].item())


class _Result(torch.autograd.Function):
    """Gives a tensor as a result that needs a gradient, without a copy of it."""

    @staticmethod
    def forward(ctx, cause, x):
        return x.detach()

    @staticmethod
    def backward(ctx, grad):
        return None, None


def in_place(logits, token, mask):
    """Returns the loss; writes its gradient over the logits."""
    result = _Result.apply(torch.zeros((), requires_grad=True), logits)
    out = rlkern.policy_loss(
        result, token, torch.ones(len(token)), mask, algorithm="ppo",
        weight=mask.float() / 3, entropy_coef=0.1, inplace=True,
    )  # fmt: skip
    return out.loss.detach()


@NATIVE
@pytest.mark.slow
def test_rows_beyond_two_to_the_31_elements_are_found():
    N, V, last = 14_200, 151_936, 3
    assert (N - last) * V > 2**31
    small = torch.randn(last, V).bfloat16()
    # Zeros of the allocator, not ones written here: rows that are masked stay unread until cleared.
    logits = torch.zeros(N, V, dtype=torch.bfloat16)
    logits[-last:] = small
    token = torch.full((N,), -100)
    token[-last:] = torch.tensor([0, V // 2, V - 1])
    mask = token >= 0
    with rlkern.use_backend("cpu"):
        loss = in_place(logits, token, mask)
        expected = in_place(small, token[-last:], mask[-last:])
    assert loss.equal(expected) and logits[-last:].equal(small)
    assert small[:, 5].ne(0).all() and logits[-last - 1].eq(0).all()


def test_seventy_thousand_positions_are_scored_like_each_alone(backend):
    logits = torch.randn(1, 70_000, 8)
    token = torch.randint(8, (1, 70_000))
    logprob = rlkern.token_logprob(logits, token).logprob
    log_p = torch.log_softmax(logits.double(), -1).gather(-1, token[..., None])[..., 0]
    torch.testing.assert_close(logprob.double(), log_p, rtol=1e-5, atol=1e-6)
    mask = torch.ones_like(token, dtype=torch.bool)
    out = rlkern.policy_loss(logits, token, torch.ones(1), mask, algorithm="reinforce")
    assert out.loss.item() == pytest.approx(-log_p.mean().item(), rel=1e-6)
    assert rlkern.metrics_dict(out.metrics)["num_tokens"] == 70_000
