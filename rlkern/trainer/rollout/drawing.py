# SPDX-License-Identifier: Apache-2.0
"""A token from a distribution by a number: the same one however it is found."""

from __future__ import annotations

import torch
from torch import Tensor

# Columns whose probabilities are added up before they are looked at one by one.
_BLOCK = 256
# How far a sum of float32 probabilities and a share of their total may be from one another's in
# float64, relative to the total: exp is off by two units in the last place at most, in each.
_OFF = 6e-7


def draw(logprob: Tensor, uniform: Tensor | None) -> Tensor:
    """Returns a token (B,) for each row: the first whose cumulative probability in float64 is above
    the row's number, or the likeliest where there is no number.

    Sums of float32 probabilities find it. Where they are too near to a boundary to be sure of it,
    float64 decides, so the token is that of float64 always.

    >>> draw(torch.tensor([[0.25, 0.0, 0.75]] * 2).log(), torch.tensor([0.2, 0.3]).double())
    tensor([0, 2])
    """
    if uniform is None:
        return logprob.argmax(-1)
    whole, uniform = logprob.shape[1] // _BLOCK * _BLOCK, uniform.to(logprob.device)
    if whole < 4 * _BLOCK or logprob.dtype != torch.float32:
        return _exact(logprob, uniform)
    token, sure = _by_blocks(logprob, uniform)
    unsure = (~sure).nonzero()[:, 0]
    if len(unsure):
        token[unsure] = _exact(logprob[unsure], uniform[unsure])
    return token


def _exact(logprob: Tensor, uniform: Tensor) -> Tensor:
    cumulative = logprob.double().exp().cumsum(-1)
    total = cumulative[:, -1:]
    # Of numbers in [0, 1) the largest is 1 - 2**-53, and its product still rounds below the total.
    place = uniform.to(total)[:, None] * total
    return torch.searchsorted(cumulative, place, right=True)[:, 0]


def _by_blocks(logprob: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Returns tokens (B,) by float32 probabilities, and which of them float64 finds, too."""
    count, width = logprob.shape
    blocks = -(-width // _BLOCK)
    probability = logprob.new_empty(count, blocks * _BLOCK)
    probability[:, width:] = 0.0
    torch.exp(logprob, out=probability[:, :width])
    # Sums in float64: only the probabilities themselves are rounded.
    sums = probability.view(count, blocks, _BLOCK).sum(-1, dtype=torch.float64).cumsum(-1)
    total = sums[:, -1:]
    place = uniform.to(total)[:, None] * total
    block = torch.searchsorted(sums, place, right=True).clamp(max=blocks - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    columns = block * _BLOCK + torch.arange(_BLOCK, device=logprob.device)
    edges = torch.cat([before, before + probability.gather(1, columns).double().cumsum(-1)], 1)
    # edges[k] and edges[k + 1] hold column k of the block.
    within = (torch.searchsorted(edges, place, right=True) - 1).clamp(0, _BLOCK - 1)
    sure = (edges - place).abs().amin(-1) > _OFF * total[:, 0]
    return (block * _BLOCK + within)[:, 0], sure
