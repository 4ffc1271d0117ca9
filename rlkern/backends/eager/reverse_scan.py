# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the reverse scan x_t = bias_t + decay_t · x_{t+1}, padded or packed.

Padded input is (B, T), a sequence a row. Packed input is (N,) beside cu_seqlens (S + 1,), which
says where each sequence begins and the last ends.
"""

import torch
from torch import Tensor


def sequence_of_step(cu_seqlens: Tensor, steps: int) -> Tensor:
    """Returns the index of the sequence that each of the packed steps belongs to."""
    step = torch.arange(steps, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens[1:], step, right=True)


def at_steps(x: Tensor, steps: int, cu_seqlens: Tensor | None) -> Tensor:
    """Returns one number per sequence (S,) so that it broadcasts over the steps."""
    return x[:, None] if cu_seqlens is None else x[sequence_of_step(cu_seqlens, steps)]


def last_steps(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Returns a mask of the steps of x that end their sequence, counted or not."""
    step = torch.arange(x.shape[-1], device=x.device)
    if cu_seqlens is None:
        return step == x.shape[-1] - 1
    return step + 1 == cu_seqlens[1:][sequence_of_step(cu_seqlens, x.shape[-1])]


def last_counted_steps(mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Returns where the last step that counts of each sequence is."""
    counted = mask.cumsum(-1)
    if cu_seqlens is None:
        return mask & (counted == mask.sum(-1, keepdim=True))
    of_step = sequence_of_step(cu_seqlens, counted.shape[0])
    ends = torch.nn.functional.pad(counted, (1, 0))[cu_seqlens[1:]]
    return mask & (counted == ends[of_step])


def reverse_scan(bias: Tensor, decay: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} in each sequence, and x = 0 after its end.

    Doubling steps: after k of them every x_t holds 2^k terms, so T costs log₂ T vector operations.
    decay = 0 cuts the recurrence even where the later values are not finite.
    """
    x, a = bias, decay
    if cu_seqlens is not None:
        a = torch.where(last_steps(decay, cu_seqlens), 0.0, decay)
    step = 1
    while step < bias.shape[-1]:
        tail_x = torch.cat([x[..., step:], torch.zeros_like(x[..., :step])], dim=-1)
        tail_a = torch.cat([a[..., step:], torch.zeros_like(a[..., :step])], dim=-1)
        x = torch.where(a == 0, x, x + a * tail_x)
        a = a * tail_a
        step *= 2
    return x


def following(
    x: Tensor, mask: Tensor, after: Tensor | float, cu_seqlens: Tensor | None, scan=reverse_scan
) -> Tensor:
    """Returns x of the next counted step of the same sequence, `after` where there is none."""
    last = last_steps(x, cu_seqlens)
    # nearest_t is x of the first counted step at or after t: decays of 0 and 1 copy it exactly.
    nearest = scan(
        torch.where(mask, x, torch.where(last, after, x.new_zeros(()))),
        torch.where(mask | last, 0.0, 1.0).to(x.dtype),
        cu_seqlens,
    )
    return torch.where(last, after, torch.nn.functional.pad(nearest[..., 1:], (0, 1)))
