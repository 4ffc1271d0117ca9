# SPDX-License-Identifier: Apache-2.0
"""A Gaussian squeezed through tanh, as SAC's policy."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def squash_log_slope(u: Tensor) -> Tensor:
    """Returns log d tanh(u)/du = log(1 − tanh²(u)) = 2·(log 2 − u − softplus(−2u)).

    The first form is −inf from u = 10 on in float32; the second is finite everywhere.

    >>> squash_log_slope(torch.tensor([0.0, 50.0])).tolist()  # log 1, and 2·log 2 − 100
    [0.0, -98.61370849609375]
    """
    return 2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u))


def squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (a, log π(a)) of a = tanh(u), u = mean + std·noise.

        log π(a) = Σ_i log N(u_i; mean_i, std_i) − log(1 − tanh²(u_i))

    Paper: arXiv 1801.01290, appendix C, eq. 21. Gradient to mean and log_std, through u.

    >>> a, logprob = squashed(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))
    >>> a.item(), round(logprob.item(), 4)              # the slope is 1: −½·log 2π
    (0.0, -0.9189)
    """
    u = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    return torch.tanh(u), (gaussian - squash_log_slope(u)).sum(-1)
