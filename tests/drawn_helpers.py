# SPDX-License-Identifier: Apache-2.0
"""Sequences that lie far from the old policy, their loss by rlkern and by a formula by hand."""

import torch

import rlkern

S, T = 8, 5


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
