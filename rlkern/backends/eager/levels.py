# SPDX-License-Identifier: Apache-2.0
"""Eager definition of ratio levels: the log ratio a gate sees, of the token or of its sequence.

d_t = log π(o_t) − log π_old(o_t); |o| counts the tokens of the sequence whose weight is not 0.
Twins: csrc/math/levels.h and kernels/triton/_levels.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Sequences:
    """Which tokens (B, T) belong together: each row, or with cu_seqlens stretches of the flat rows.

    cu_seqlens (S + 1,) says where sequence i begins, in rows of the flattened (B, T), and ends:
    cu_seqlens[i] and cu_seqlens[i + 1].
    """

    def __init__(self, shape: torch.Size, cu_seqlens: Tensor | None):
        self.shape, self.cu_seqlens = shape, cu_seqlens
        if cu_seqlens is not None:
            flat = torch.arange(shape.numel(), device=cu_seqlens.device)
            self.of_row = torch.searchsorted(cu_seqlens[1:], flat, right=True)

    def total(self, x: Tensor) -> Tensor:
        """Returns the sum of x over the sequence of each token, at each token."""
        if self.cu_seqlens is None:
            return x.sum(-1, keepdim=True).expand(self.shape)
        sums = x.new_zeros(self.cu_seqlens.numel() - 1).index_add(0, self.of_row, x.reshape(-1))
        return sums[self.of_row].reshape(self.shape)

    def mean(self, x: Tensor, counted: Tensor) -> Tensor:
        """Returns the mean of x over the counted tokens of each token's sequence, at each token.

        x is 0 at tokens that do not count; so is the mean of a sequence that has no other.
        """
        return self.total(x) / self.total(counted.to(x.dtype)).clamp(min=1)


class Ratio(NamedTuple):
    """The log ratio of each token as its gate sees it, and where a clip holds the token's own."""

    log_ratio: Tensor
    clip_low: Tensor
    clip_high: Tensor


Level = Callable[..., Ratio]


def _free(log_ratio: Tensor) -> Ratio:
    nowhere = torch.zeros_like(log_ratio, dtype=torch.bool)
    return Ratio(log_ratio, nowhere, nowhere)


def token(d: Tensor, advantage: Tensor, counted: Tensor, sequences: Sequences, *unused) -> Ratio:
    """Returns d_t: PPO's own ratio."""
    return _free(d)


def sequence(d: Tensor, advantage: Tensor, counted: Tensor, sequences: Sequences, *unused) -> Ratio:
    """Returns (1/|o|)·Σ d_t, the ratio's geometric mean. Paper: GSPO, arXiv 2507.18071, eq. 7."""
    return _free(sequences.mean(d, counted))


def sequence_token(
    d: Tensor, advantage: Tensor, counted: Tensor, sequences: Sequences, *unused
) -> Ratio:
    """Returns the value of sequence with the gradient of d_t. Paper: arXiv 2507.18071, eq. 14."""
    # The difference first: it is exactly 0, and a far larger d would take the digits of the mean.
    return _free(sequences.mean(d, counted).detach() + (d - d.detach()))


def product(d: Tensor, advantage: Tensor, counted: Tensor, sequences: Sequences, *unused) -> Ratio:
    """Returns Σ d_t: the ratio of the whole answers, as in RLOO, arXiv 2402.14740, §3.2."""
    return _free(sequences.total(d))


def clipped_sequence(
    d: Tensor, advantage: Tensor, counted: Tensor, sequences: Sequences,
    low: float, high: float, *unused: float,
) -> Ratio:  # fmt: skip
    """Returns (1/|o|)·Σ of min(d_t, high) where A ≥ 0, of max(d_t, −low) where A < 0.

    Paper: GMPO, arXiv 2507.20673; the widths are of the log ratio.
    """
    positive = advantage >= 0
    held = torch.where(positive, d.clamp(max=high), d.clamp(min=-low))
    return Ratio(sequences.mean(held, counted), ~positive & (d < -low), positive & (d > high))


def clamped(log_ratio: Tensor, low: float, high: float) -> Tensor:
    """Returns log_ratio within [low, high]: beyond a constant, on a bound itself with its gradient.

    That is torch.clamp, but a NaN has a gradient, so that it shows there too. verl clamps the
    token's log ratio to ±20, and GSPO's mean from above to 10; OpenRLHF ±20, open-instruct ±10;
    TRL clamps neither.
    """
    beyond = (log_ratio < low) | (log_ratio > high)
    return torch.where(beyond, log_ratio.detach().clamp(low, high), log_ratio)


# The position in this table is the number the native kernels know the formula by.
LEVELS: dict[str, Level] = {
    "token": token,
    "sequence": sequence,
    "sequence_token": sequence_token,
    "product": product,
    "clipped_sequence": clipped_sequence,
}
LEVEL_INDEX = {name: i for i, name in enumerate(LEVELS)}
