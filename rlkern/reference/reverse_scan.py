# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the reverse scan x_t = bias_t + decay_t · x_{t+1}."""

import torch
from torch import Tensor


def reverse_scan(bias: Tensor, decay: Tensor) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} along the last dimension, and x_T = 0.

    Doubling steps: after k of them every x_t holds 2^k terms, so T costs log₂ T vector operations.
    decay = 0 cuts the recurrence even where the later values are not finite.
    """
    x, a = bias, decay
    step = 1
    while step < bias.shape[-1]:
        tail_x = torch.cat([x[..., step:], torch.zeros_like(x[..., :step])], dim=-1)
        tail_a = torch.cat([a[..., step:], torch.zeros_like(a[..., :step])], dim=-1)
        x = torch.where(a == 0, x, x + a * tail_x)
        a = a * tail_a
        step *= 2
    return x
