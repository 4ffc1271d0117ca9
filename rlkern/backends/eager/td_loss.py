# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the temporal-difference loss of action values."""

import torch
from torch import Tensor

from rlkern.backends.eager.autograd import recording
from rlkern.backends.eager.value_loss import VALUE_KINDS, value_metrics


def greatest(next_q: Tensor, other: Tensor | None, next_action: Tensor | None) -> Tensor:
    """Returns max_a Q⁻(s', a): Q-learning and DQN. Paper: arXiv 1312.5602, eq. 2."""
    return next_q.amax(-1)


def double(next_q: Tensor, other: Tensor | None, next_action: Tensor | None) -> Tensor:
    """Returns Q⁻(s', argmax_a other(a)), other the online values.

    Paper: arXiv 1509.06461, eq. 4.
    """
    assert other is not None
    return next_q.gather(-1, other.argmax(-1, keepdim=True)).squeeze(-1)


def twin_min(next_q: Tensor, other: Tensor | None, next_action: Tensor | None) -> Tensor:
    """Returns max_a of the smaller of two target networks' values.

    Paper: arXiv 1802.09477, eq. 10, whose actor takes the place of the maximum.
    """
    assert other is not None
    return torch.minimum(next_q, other).amax(-1)


def taken(next_q: Tensor, other: Tensor | None, next_action: Tensor | None) -> Tensor:
    """Returns Q⁻(s', a') of the action taken next: SARSA. Sutton & Barto 2018, eq. 6.7."""
    assert next_action is not None
    return next_q.gather(-1, next_action[:, None]).squeeze(-1)


def expected(next_q: Tensor, other: Tensor | None, next_action: Tensor | None) -> Tensor:
    """Returns Σ_a π(a|s')·Q⁻(s', a), other the probabilities. Sutton & Barto 2018, eq. 6.9."""
    assert other is not None
    # A probability of 0 drops its action even where the value is not finite.
    return torch.where(other == 0, 0.0, other * next_q).sum(-1)


# The position is the number that the native kernels know the bootstrap by.
BOOTSTRAPS = {
    "max": greatest,
    "double": double,
    "twin_min": twin_min,
    "sarsa": taken,
    "expected": expected,
}
BOOTSTRAP_INDEX = {name: i for i, name in enumerate(BOOTSTRAPS)}
TD_KINDS = ("squared", "full_squared", "huber")


def td_loss(
    q: Tensor,
    action: Tensor,
    reward: Tensor,
    done: Tensor,
    next_q: Tensor,
    other: Tensor | None,
    next_action: Tensor | None,
    weight: Tensor,
    bootstrap: str,
    kind: str,
    coef: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_q, error); coef is (discount, delta), error target − Q(s, a).

    Rows of weight 0 are not read, nor the next values of rows that are done.
    """
    discount, delta = coef.tolist()
    counted = weight != 0
    read, follows = counted[:, None], (counted & ~done)[:, None]
    action = torch.where(counted, action, 0)
    later = torch.where(follows, next_q.detach(), 0.0)
    second = None if other is None else torch.where(follows, other.detach(), 0.0)
    then = None if next_action is None else torch.where(follows[:, 0], next_action, 0)
    following = torch.where(follows[:, 0], BOOTSTRAPS[bootstrap](later, second, then), 0.0)
    target = torch.where(counted, reward.detach() + discount * following, 0.0)
    with recording():
        leaf = torch.where(read, q.detach(), 0.0).requires_grad_()
        value = leaf.gather(-1, action[:, None]).squeeze(-1)
        term = VALUE_KINDS[kind].penalty(value - target, delta)
        loss = torch.where(counted, weight * term, 0.0).sum()
        (grad_q,) = torch.autograd.grad(loss, leaf)
    value = value.detach()
    metrics = value_metrics(value, target, torch.zeros_like(counted), counted)
    return loss.detach(), metrics, grad_q, torch.where(counted, target - value, 0.0)
