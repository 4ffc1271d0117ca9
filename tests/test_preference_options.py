# SPDX-License-Identifier: Apache-2.0
"""Options of the preference losses: flipped labels, α of either sign, LD-DPO, WPO."""

import math

import pytest
import torch
from test_preference import B, dpo, lost, pairs

import rlkern

NAN, EPS = math.nan, 0.2
MASK = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()


@pytest.mark.parametrize("kind", ("cpo", "simpo", "alpha_po"))
def test_flipped_labels_mix_the_loss_with_that_of_the_other_order(kind):
    logprob, length = pairs()
    (c, r), sizes = ([x.tolist() for x in logprob[:2]], [n.tolist() for n in length])
    if kind != "cpo":
        c, r = ([x / n for x, n in zip(*both)] for both in zip((c, r), sizes))
    if kind == "alpha_po":
        c, r = ([(1 - math.exp(-0.2 * x)) / 0.2 for x in both] for both in (c, r))
    x = [0.6 * (a - b) - (0 if kind == "cpo" else 0.3) for a, b in zip(c, r)]
    more = [-0.7 * a if kind == "cpo" else 0.0 for a in c]
    expected = sum((1 - EPS) * dpo(a) + EPS * dpo(-a) + b for a, b in zip(x, more)) / B
    weight = torch.full((B,), 1 / B, dtype=torch.float64)
    loss = lost(kind, logprob, length, label_smoothing=EPS, weight=weight).loss
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    plain = lost(kind, logprob, length, weight=weight).loss
    assert lost(kind, logprob, length, label_smoothing=0, weight=weight).loss.equal(plain)


@pytest.mark.parametrize("alpha", (-1.0, -0.4, 1.0, 1.5))
def test_alpha_may_lie_beyond_the_two_kl_divergences(alpha):
    logprob, length = pairs()
    h = [(logprob[i] - logprob[i + 2]).tolist() for i in (0, 1)]
    score = [[(1 - math.exp(-alpha * x)) / alpha for x in both] for both in h]
    expected = sum(dpo(0.6 * (c - r)) for c, r in zip(*score)) / B
    weight = torch.full((B,), 1 / B, dtype=torch.float64)
    options = {"divergence": "alpha", "alpha": alpha, "weight": weight}
    loss = lost("sigmoid", logprob, length, **options).loss
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    if alpha == 1.0:
        forward = lost("sigmoid", logprob, length, divergence="forward_kl", weight=weight).loss
        torch.testing.assert_close(loss, forward, rtol=1e-12, atol=0)


def test_alpha_po_tends_to_simpo():
    logprob, length = pairs()
    near = lost("alpha_po", logprob, length, alpha=1e-9).loss
    torch.testing.assert_close(near, lost("simpo", logprob, length).loss, rtol=1e-7, atol=0)


@pytest.mark.parametrize("kind,more", (("alpha_po", {}), ("sigmoid", {"divergence": "alpha"})))
def test_an_alpha_of_0_is_refused(kind, more):
    with pytest.raises(ValueError, match="preference_loss: alpha must not be 0, .* got 0"):
        lost(kind, *pairs(), alpha=0.0, **more)


def tokens(seed=0):
    random = torch.Generator().manual_seed(seed)
    x = -3 * torch.rand(MASK.shape, generator=random, dtype=torch.float64)
    return x.masked_fill(~MASK, NAN)


def packed(x):
    return x.flatten(), torch.tensor([0, 5, 10, 15])


def test_what_is_longer_than_the_shorter_answer_weighs_less():
    logprob, public = tokens().requires_grad_(), torch.tensor([2, 3, 1])
    got = rlkern.ld_sequence_logprob(logprob, MASK, public, ld_alpha=0.4)
    first, second = (x[m].tolist() for x, m in zip(logprob, MASK[:2]))
    expected = [sum(first[:2]) + 0.4 * sum(first[2:]), sum(second), 0.0]
    assert got.tolist() == pytest.approx(expected, rel=1e-12)
    (grad,) = torch.autograd.grad(got.sum(), logprob)
    assert grad.tolist() == [[1, 1, 0, 0.4, 0.4], [1, 0, 0, 0, 0], [0] * 5]
    flat, bounds = packed(logprob.detach())
    again = rlkern.ld_sequence_logprob(
        flat, MASK.flatten(), public, ld_alpha=0.4, cu_seqlens=bounds
    )
    assert again.equal(got)
    counted = torch.ones(6, dtype=torch.bool)  # a row whose last token counts ends before the next
    plain, bounds = torch.arange(-6.0, 0.0), torch.tensor([0, 3, 6])
    two = rlkern.ld_sequence_logprob(
        plain, counted, torch.tensor([1, 2]), ld_alpha=0.5, cu_seqlens=bounds
    )
    assert two.tolist() == [-6 + 0.5 * (-5 - 4), -3 - 2 + 0.5 * -1]
    whole = rlkern.ld_sequence_logprob(logprob, MASK, public, ld_alpha=1.0)
    assert whole.equal(rlkern.sequence_logprob(logprob, MASK))
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match="ld_alpha must be from 0 to 1, got"):
            rlkern.ld_sequence_logprob(logprob, MASK, public, ld_alpha=value)
    with pytest.raises(ValueError, match=r"public_length must be \(3,\) on cpu, got \(2,\)"):
        rlkern.ld_sequence_logprob(logprob, MASK, public[:2], ld_alpha=0.5)


def test_wpo_weighs_an_answer_by_how_likely_the_policy_writes_it():
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    token = torch.arange(15).reshape(3, 5) % 7
    scored = rlkern.token_logprob(logits.requires_grad_(), token)
    squares = torch.where(MASK, scored.sum_pi_squared, NAN)
    got = rlkern.wpo_weight(scored.logprob, squares, MASK)
    pi = logits.detach().softmax(-1)
    ratio = pi.gather(-1, token[..., None])[..., 0] / pi.square().sum(-1)
    rows = [x[m].tolist() for x, m in zip(ratio, MASK)]
    expected = [math.prod(x) ** (1 / max(len(x), 1)) for x in rows]
    assert got.tolist() == pytest.approx(expected, rel=1e-12) and not got.requires_grad
    flat, bounds = packed(scored.logprob)
    again = rlkern.wpo_weight(flat, squares.flatten(), MASK.flatten(), cu_seqlens=bounds)
    assert again.equal(got)
    with pytest.raises(ValueError, match=r"sum_pi_squared must be \(3, 5\) on cpu, got \(3, 4\)"):
        rlkern.wpo_weight(scored.logprob, squares[:, :4], MASK)
    with pytest.raises(ValueError, match="sum_pi_squared must be positive where mask is True"):
        rlkern.wpo_weight(scored.logprob, 0 * squares, MASK)
