# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the temporal-difference losses of action values.

    Σ weight·penalty(Q(s, a) − y),  y = r + discount·(1 − done)·F(s')

The C++ home of what a loss bootstraps from is csrc/cpu/td_loss.cpp.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends.eager.value_loss import value_loss


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


BOOTSTRAPS = {
    "max": greatest,
    "double": double,
    "twin_min": twin_min,
    "sarsa": taken,
    "expected": expected,
}
TD_KINDS = ("squared", "full_squared", "huber")
BOOTSTRAP_INDEX = {name: i for i, name in enumerate(BOOTSTRAPS)}


class Transitions(NamedTuple):
    """What is known of each transition beside the values that are learned.

    other is what double, twin_min and expected need beside next_q, next_action what sarsa does.
    Without weight the loss is a mean. A transition of weight 0 is not read, nor are the next
    values of one that is done.
    """

    action: Tensor
    reward: Tensor
    done: Tensor
    next_q: Tensor
    other: Tensor | None = None
    next_action: Tensor | None = None
    weight: Tensor | None = None


def check_actions(transitions: Transitions, actions: int) -> None:
    """Raises ValueError if an action that is read is none of the table's."""
    action, _, done, _, _, then, weight = transitions
    read = torch.ones_like(done) if weight is None else weight != 0
    looked_at = {"action": (action, read), "next_action": (then, read & ~done)}
    for name, (x, counts) in looked_at.items():
        if x is None:
            continue
        outside = counts & ((x < 0) | (x >= actions))
        if outside.any():
            got = x[outside][0].item()
            raise ValueError(f"td_loss: {name} must be in [0, {actions}), got {got}")


def td_loss(
    q: Tensor, transitions: Transitions, bootstrap: str, kind: str, coef: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, error, grad_q); coef is (discount, delta).

    error is y − Q(s, a), 0 where the weight is.
    """
    action, reward, done, next_q, other, then, weight = transitions
    discount, delta = coef.tolist()
    if weight is None:
        weight = torch.full_like(reward, 1.0 / max(len(reward), 1))
    counted = weight != 0
    follows = counted & ~done
    if then is not None:
        then = torch.where(follows, then, 0)
    q = q.detach()
    at = torch.where(counted, action, 0).unsqueeze(-1)
    try:
        later = BOOTSTRAPS[bootstrap](next_q, other, then)
        value = q.gather(-1, at).squeeze(-1)
    except RuntimeError:  # of an index without the name of its argument
        check_actions(transitions, q.shape[1])
        raise
    target = torch.where(counted, reward + discount * torch.where(follows, later, 0.0), 0.0)
    value = torch.where(counted, value, 0.0)
    no_clip = torch.tensor((1.0, delta), dtype=torch.float64)
    loss, metrics, grad_value = value_loss(value, target, None, weight, kind, no_clip)
    grad_q = torch.zeros_like(q).scatter(-1, at, grad_value.unsqueeze(-1))
    return loss, metrics, target - value, grad_q
