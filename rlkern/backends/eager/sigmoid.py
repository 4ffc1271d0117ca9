# SPDX-License-Identifier: Apache-2.0
"""The sigmoid with a gradient that keeps its digits."""

import torch
from torch import Tensor


def sigmoid(x: Tensor) -> Tensor:
    """Returns σ(x) = 1/(1 + exp(−x)), whose gradient σ(x)·σ(−x) has all its digits everywhere.

    torch.sigmoid makes the gradient σ·(1 − σ), which is 0 in float32 from x = 17 on: there σ rounds
    to 1. Here the side above 0 is 1 − σ(−x).
    """
    return torch.where(x > 0, 1 - torch.sigmoid(-x), torch.sigmoid(x))
