# SPDX-License-Identifier: Apache-2.0
"""Sums of n rewards and the value after them."""

import torch
from torch import Tensor

from rlkern.backends.eager.reverse_scan import sequence_of_step
from rlkern.ops._steps import Steps, steps


def n_step_return(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    n: int,
    discount: float | Tensor = 1.0,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """Returns n rewards and then the value of the state they lead to.

        G_t = Σ_{k<n} discount^k·r_{t+k} + discount^n·V_{t+n}

    Steps are counted tokens. Where fewer than n are left the sum ends with the last, and the
    bootstrap takes the place of the value: with n of at least the length it is discounted_return.
    Paper: arXiv 1602.01783 (A3C), §3. n = 1 is TD(0).

    Arguments
        n           steps, at least 1
        the others  as of gae
    Returns
        (..., T), 0 where mask is False
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none: the result is a constant

    >>> reward, value = torch.ones(1, 4), torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    >>> n_step_return(reward, value, value > 0, n=2).tolist()
    [[32.0, 42.0, 2.0, 1.0]]
    """
    op = "n_step_return"
    rows = steps(op, reward, mask, cu_seqlens).with_ends(terminated, truncated, final_value)
    value = rows.floats("value", value)
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{op}: n must be an integer of at least 1, got {n!r}")
    n = min(n, rows.reward.numel())
    ahead = _Ahead(rows)
    window = ahead.pack(rows.reward)
    factor = ahead.pack(rows.coefficient("discount", discount))
    total, scale, covered = torch.zeros_like(window), torch.ones_like(window), 0
    # Sums over 1, 2, 4, … steps; those of n's binary digits follow one another. A difference of two
    # Monte Carlo returns would cost digits where rewards are many.
    for width in (1 << bit for bit in range(n.bit_length())):
        if n & width:
            total = total + scale * ahead(window, covered, 0.0)
            scale = scale * ahead(factor, covered, 1.0)
            covered += width
        window = window + factor * ahead(window, width, 0.0)
        factor = factor * ahead(factor, width, 1.0)
    after = ahead.at_end(ahead.pack(rows.after(bootstrap)))
    total = total + scale * ahead(ahead.pack(value), n, after)
    return torch.where(rows.mask, ahead.unpack(total), 0.0).reshape(rows.shape)


class _Ahead:
    """The counted steps side by side, so that k steps ahead is k places ahead."""

    def __init__(self, rows: Steps):
        mask = rows.mask.reshape(-1)
        self.shape, self.steps = rows.reward.shape, mask.numel()
        self.place = torch.arange(self.steps, device=mask.device)
        counted = torch.nn.functional.pad(mask.cumsum(0), (1, 0))
        self.slot = torch.where(mask, counted[1:] - 1, self.steps)
        if rows.cu_seqlens is None:
            end = (self.place // max(self.shape[-1], 1) + 1) * self.shape[-1]
        else:
            end = rows.cu_seqlens[1:][sequence_of_step(rows.cu_seqlens, self.steps)]
        self.end = self.pack(counted[end].reshape(self.shape))
        if rows.ends is not None:
            over = torch.where(self.pack(rows.ends.done), self.place + 1, self.steps)
            self.end = torch.minimum(self.end, over.flip(0).cummin(0).values.flip(0))

    def pack(self, x: Tensor) -> Tensor:
        """Returns what the counted steps have, each in its place."""
        flat = x.expand(self.shape).reshape(-1)
        return flat.new_zeros(self.steps + 1).scatter(0, self.slot, flat)[:-1]

    def unpack(self, x: Tensor) -> Tensor:
        """Returns what lies in the place of each step; anything where the step is not counted."""
        return torch.nn.functional.pad(x, (0, 1))[self.slot].reshape(self.shape)

    def at_end(self, x: Tensor) -> Tensor:
        """Returns x of the last counted step before the end."""
        return x[(self.end - 1).clamp(min=0)]

    def __call__(self, x: Tensor, k: int, beyond: Tensor | float) -> Tensor:
        """Returns x k counted steps ahead, `beyond` where the sequence or episode is over."""
        there = self.place + k
        return torch.where(there < self.end, x[there.clamp(max=self.steps - 1)], beyond)
