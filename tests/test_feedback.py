# SPDX-License-Identifier: Apache-2.0
"""KTO and reward models against their papers' equations written out."""

import math

import pytest
import torch

import rlkern

NAN, B = math.nan, 6


def sigma(x):
    return 1 / (1 + math.exp(-x))


def rows(n):
    """Returns n vectors of log-probabilities."""
    random = torch.Generator().manual_seed(0)
    return (-1 - 4 * torch.rand(n, B, generator=random, dtype=torch.float64)).unbind()


def test_kto_is_its_equation_and_its_reference_point_a_constant():
    logprob, ref = (x.clone().requires_grad_() for x in rows(2))
    desirable = torch.tensor([True, False, True, True, False, False])
    shifted = logprob.roll(1) + 2
    kl = rlkern.mismatched_kl(shifted, ref)
    z = max(0.0, (shifted - ref).mean().item())
    assert kl.item() == pytest.approx(z, rel=1e-12) and z > 0 and not kl.requires_grad
    terms = [1.5 * (1 - sigma(0.6 * (h - z))) if good else 0.5 * (1 - sigma(0.6 * (z - h)))
             for h, good in zip((logprob - ref).tolist(), desirable.tolist())]  # fmt: skip
    coefs = {"beta": 0.6, "desirable_coef": 1.5, "undesirable_coef": 0.5}

    def loss(x):
        return rlkern.kto_loss(x, ref, desirable, kl, **coefs).loss

    assert loss(logprob).item() == pytest.approx(sum(terms) / B, rel=1e-12)
    assert torch.autograd.gradcheck(loss, logprob)
    (grad,) = torch.autograd.grad(loss(logprob), logprob)
    assert grad[desirable].lt(0).all() and grad[~desirable].gt(0).all()
    assert rlkern.mismatched_kl(ref, shifted).item() == 0


def test_kto_counts_desirable_and_undesirable_answers_apart():
    logprob, ref = torch.tensor([-1.0, -4.0, NAN, -3.0]), torch.tensor([-2.0, -2.0, NAN, -2.0])
    desirable, mask = torch.tensor([True, False, True, True]), torch.tensor([1, 1, 0, 1]).bool()
    out = rlkern.kto_loss(logprob, ref, desirable, torch.tensor(0.0), beta=0.5, mask=mask)
    found = rlkern.preference_metrics_dict(out.metrics)
    assert found["count"] == 3 and found["rewards/accuracies"] == pytest.approx(2 / 3)
    assert found["rewards/chosen"] == 0.0 and found["rewards/rejected"] == -1.0
    assert found["logps/chosen"] == -2.0 and found["logps/rejected"] == -4.0


def test_the_reward_model_loss_is_bradley_terry_with_margin_and_centre():
    chosen, rejected, margin = rows(3)
    terms = [-math.log(sigma(c - r - m)) + 0.01 * (c + r) ** 2
             for c, r, m in zip(*(x.tolist() for x in (chosen, rejected, margin)))]  # fmt: skip
    mask = torch.tensor([True] * B + [False])

    def padded(x):
        return torch.cat([x, x.new_tensor([NAN])])

    leaf = padded(chosen).requires_grad_()
    rest = {"margin": padded(margin), "center_coef": 0.01, "mask": mask}
    out = rlkern.reward_model_loss(leaf, padded(rejected), **rest)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(sum(terms) / B, rel=1e-12)
    assert leaf.grad[-1] == 0 and leaf.grad.isfinite().all()
    found = rlkern.preference_metrics_dict(out.metrics)
    accuracy = (chosen > rejected).double().mean().item()
    assert found["rewards/accuracies"] == accuracy and math.isnan(found["logps/chosen"])


def test_default_weights_of_masked_float64_answers_have_all_their_digits():
    logprob, ref = rows(2)
    mask, desirable = torch.arange(B) < 3, torch.arange(B) % 2 == 0  # of three: 1/3 is not exact
    ratios = (logprob - ref).tolist()[:3]
    kl = rlkern.mismatched_kl(logprob, ref - 9, mask=mask)
    assert kl.item() == pytest.approx(sum(x + 9 for x in ratios) / 3, rel=1e-12)
    terms = [sigma(-0.1 * h) if good else sigma(0.1 * h) for h, good in zip(ratios, desirable)]
    zero = torch.zeros((), dtype=torch.float64)
    out = rlkern.kto_loss(logprob, ref, desirable, zero, mask=mask)
    assert out.loss.item() == pytest.approx(sum(terms) / 3, rel=1e-12)
