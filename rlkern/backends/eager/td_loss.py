# SPDX-License-Identifier: Apache-2.0
"""What the temporal-difference losses of action values bootstrap from.

There are no kernels: plain PyTorch is faster. rlkern/ops/td_loss.py has the rest.
"""

import torch
from torch import Tensor


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
