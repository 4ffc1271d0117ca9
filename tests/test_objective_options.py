# SPDX-License-Identifier: Apache-2.0
"""Options of the token objective against what other trainers compute, written out by hand.

Nothing of the library's formulas is used here, and everything is float64.
"""

import math

import pytest
import torch

import rlkern
from rlkern.backends import _load
from rlkern.backends.eager.kl import KL_ESTIMATORS

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
S, T = 8, 5


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


class Drawn:
    """Ragged sequences: some tokens and some whole sequences lie far from the old policy."""

    def __init__(self):
        random = torch.Generator().manual_seed(5)

        def normal():
            return torch.randn(S, T, generator=random, dtype=torch.float64)

        self.logprob = -3 + normal()
        self.old = self.logprob - torch.logspace(-2, 1.5, S * T).reshape(T, S).T * normal().sign()
        self.old[0], self.old[1] = self.logprob[0] - 12, self.logprob[1] + 15
        self.ref = self.logprob - torch.logspace(-3, 2, S * T).reshape(S, T) * normal().sign()
        self.entropy, self.advantage = normal().exp(), normal()
        self.length = torch.tensor([5, 3, 1, 5, 2, 4, 5, 3])
        self.mask = torch.arange(T) < self.length[:, None]
        self.weight = torch.where(self.mask, normal().exp(), 0.0)

    def loss(self, algorithm, advantage=None, **options):
        """Returns (loss, gradients in log π and H, metrics) of the public operation."""
        leaves = [x.clone().requires_grad_() for x in (self.logprob, self.entropy)]
        given = {"old_logprob": self.old, "ref_logprob": self.ref, "weight": self.weight}
        out = rlkern.token_objective(
            leaves[0], self.advantage if advantage is None else advantage, self.mask,
            entropy=leaves[1], algorithm=algorithm, **{**given, **options},
        )  # fmt: skip
        out.loss.backward()
        return out.loss.detach(), *(x.grad for x in leaves), rlkern.metrics_dict(out.metrics)

    def by_hand(self, formula):
        """Returns the same of formula(log π, H), the loss of each token or of the batch."""
        leaves = [x.clone().requires_grad_() for x in (self.logprob, self.entropy)]
        value = formula(*leaves)
        total = value if value.ndim == 0 else (self.weight * value)[self.mask].sum()
        grads = torch.autograd.grad(total, leaves, materialize_grads=True)
        return total.detach(), *grads


def assert_same(got, expected):
    for x, y in zip(got, expected, strict=False):  # the metrics have no twin
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def mean_over_answers(x, drawn):
    return ((x * drawn.mask).sum(-1) / drawn.length)[:, None].expand_as(x)


def verl_kl(p, ref):
    d = (ref - p).clamp(min=-20, max=20)
    return (d.exp() - d - 1).clamp(min=-10, max=10)


def test_kl_max_ten_is_the_low_var_kl_of_verl(backend):
    drawn, none = Drawn(), torch.zeros(S, T).double()
    clamped = {"kl_coef": 0.3, "kl_estimator": "k3", "kl_max": 10}
    got = drawn.loss("reinforce", none, **clamped)
    assert_same(got, drawn.by_hand(lambda p, h: 0.3 * verl_kl(p, drawn.ref)))
    kl = verl_kl(drawn.logprob, drawn.ref)[drawn.mask]
    assert kl.max() == 10 and abs(got[3]["kl"] - kl.mean()) < 1e-12  # what the loss saw

    def through(p, h):
        square = 0.5 * (p - drawn.ref).square()
        return 0.3 * (square - square.detach() + verl_kl(p, drawn.ref).detach())

    got = drawn.loss("reinforce", none, **{**clamped, "kl_estimator": "k3+"})
    assert_same(got, drawn.by_hand(through))


def test_log_ratios_within_twenty_are_those_of_verls_dual_clip(backend):
    drawn = Drawn()

    def verl(p, h):
        ratio = (p - drawn.old).clamp(-20, 20).exp()
        a = drawn.advantage
        clipped = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2))
        return torch.where(a < 0, torch.minimum(clipped, -3 * a), clipped)

    within = {"log_ratio_min": -20, "log_ratio_max": 20}
    assert ((drawn.logprob - drawn.old)[drawn.mask].abs() > 20).any()
    assert_same(drawn.loss("dual_clip_ppo", **within), drawn.by_hand(verl))


def test_log_ratio_max_ten_at_the_sequence_is_verls_gspo(backend):
    drawn = Drawn()

    def ratio(p):
        mean = mean_over_answers((p - drawn.old).detach(), drawn)
        return (p - p.detach() + mean).clamp(max=10).exp()

    def verl(p, h):
        a, r = drawn.advantage, ratio(p)
        return torch.maximum(-a * r, -a * r.clamp(1 - 3e-4, 1 + 4e-4))

    got = drawn.loss("gspo_token", log_ratio_max=10)
    assert_same(got, drawn.by_hand(verl))
    counted = ratio(drawn.logprob)[drawn.mask]
    assert got[3]["ratio/max"] == counted.max() == math.exp(10)
    assert abs(got[3]["ratio"] / counted.mean() - 1) < 1e-12


@pytest.mark.parametrize("name", ("ppo", "gspo", "gspo_token", "rloo", "sapo", "dro"))
def test_beyond_a_clamp_there_is_no_gradient_and_on_it_there_is(backend, name):
    one = torch.ones(1, 1).double()
    options = {"mask": one > 0, "weight": one, "algorithm": name}

    def slope(log_ratio, **clamps):
        logprob = (-one).requires_grad_()
        old = logprob.detach() - log_ratio
        options["old_logprob"] = old
        advantage = -one if log_ratio > 0 else one  # no clip of the gate holds it
        out = rlkern.token_objective(logprob, advantage, **options, **clamps)
        return torch.autograd.grad(out.loss, logprob)[0].item()

    constant = 1.0 if name == "dro" else 0.0  # of A·log π, which is no ratio
    for log_ratio, bound in ((0.5, "log_ratio_max"), (-0.5, "log_ratio_min")):
        beyond = slope(log_ratio, **{bound: 0.99 * log_ratio})
        assert abs(beyond) == constant
        assert slope(log_ratio, **{bound: log_ratio}) == slope(log_ratio) != beyond


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
def test_a_clamped_kl_has_no_gradient_beyond_even_where_the_estimator_overflows(backend, kl):
    logprob = torch.tensor([[-200.0, -3.0, -1.0]]).requires_grad_()
    ref, mask = torch.tensor([[-1.0, -1.0, -200.0]]), torch.ones(1, 3) > 0
    out = rlkern.token_objective(
        logprob, torch.zeros(1, 3), mask, ref_logprob=ref, weight=torch.ones(1, 3),
        algorithm="reinforce", kl_coef=1.0, kl_estimator=kl, kl_max=1e-3,
    )  # fmt: skip
    (slope,) = torch.autograd.grad(out.loss, logprob)
    d = (logprob - ref).detach()
    assert torch.equal(slope, d if kl.endswith("+") else torch.zeros(1, 3))
    signed = kl in ("k1", "k1+", "importance_k1")
    assert abs(out.loss.item() - (-1e-3 if signed else 3e-3)) < 1e-9
