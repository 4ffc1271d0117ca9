# SPDX-License-Identifier: Apache-2.0
"""Logits whose vocabulary is split over the ranks of a process group.

Each rank sweeps its own slice. Five numbers per row travel, all ranks combine them in the order
of the ranks, and from what they then know of the whole row each makes its slice's gradient: the
backward needs no communication.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rlkern.backends.eager.token_logprob import ABSENT, Scored, Softmax
from rlkern.ops import _check as check
from rlkern.ops._library import refuse_double_backward, upstream_of_scores

# A kept id of another rank's slice: −1 would say that the place is unused.
_KEPT_ELSEWHERE = -2
# In place of the logprob of a token that lies in another slice; no logprob is +inf.
_NOT_HERE = torch.inf


class Slice(NamedTuple):
    """A rank's part of the vocabulary: V ids from first on, V being the last size of its logits.

    whole stands in for the unsplit (B, T, V) logits where arguments are checked; its vocabulary
    is that of all ranks only where values are checked, for it costs a synchronisation.
    """

    group: dist.ProcessGroup
    first: Tensor
    whole: Tensor


def _gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Returns (ranks, *x.shape): the x of each rank, in rank order."""
    each = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(each, x, group=group)
    return torch.stack(each)


def slice_of(op: str, grid: Tensor, group: dist.ProcessGroup) -> Slice:
    """Returns which part of the vocabulary these (B, T, V) logits are; every rank calls this."""
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{op}: group must be a ProcessGroup, got {check.describe(group)}")
    size = grid.shape[-1]
    # Filled on the device: a number that is copied there would synchronise.
    sizes = _gather(torch.full((1,), size, dtype=torch.int64, device=grid.device), group)
    first = sizes[: dist.get_rank(group)].sum()
    vocabulary = int(sizes.sum()) if check.checks_values() else size
    whole = grid.detach().new_empty(()).expand(*grid.shape[:2], vocabulary)
    return Slice(group, first, whole)


def _to_slice(ids: Tensor, first: Tensor, size: int, elsewhere: int) -> Tensor:
    local = ids - first
    return torch.where((local >= 0) & (local < size), local, elsewhere)


def _sum_over_ranks(x: Tensor) -> Tensor:
    # One after the other: a reduction may add in another order where a row lies elsewhere.
    return reduce(torch.add, x.unbind(0))


def combine(scored: Sequence[Tensor], mask: Tensor | None) -> Scored:
    """Returns what is left of whole rows from (ranks, B, T) of what is left of their slices.

    wᵣ = share of slice r in the row's probability = exp(row_maxᵣ + log_sumᵣ − lse)
    logprob = logprobᵣ + log wᵣ of the slice that holds the token
    entropy = Σᵣ wᵣ·(entropyᵣ − log wᵣ)        sum_pi_squared = Σᵣ wᵣ²·sum_pi_squaredᵣ

    A slice without probability (all −inf, or nothing kept in it) is left out, its NaN with it.
    """
    dtype = scored[0].dtype
    # In float64, to round once: five numbers per row cost nothing, even where float64 is slow.
    logprob, entropy, row_max, log_sum, sum_pi_squared = (x.double() for x in scored)
    top = row_max.amax(0)
    empty = (row_max == -torch.inf) & (top > -torch.inf)
    log_mass = torch.where(empty, -torch.inf, row_max - top + log_sum)
    total = _sum_over_ranks(log_mass.exp()).log()
    log_share = log_mass - total
    share = log_share.exp()
    own = torch.where(empty, -torch.inf, logprob + log_share)
    not_here = logprob == _NOT_HERE
    found = _sum_over_ranks(torch.where(not_here, 0.0, own))
    parts = torch.stack([share * (entropy - log_share), share.square() * sum_pi_squared], 1)
    sums = _sum_over_ranks(torch.where((share == 0).unsqueeze(1), 0.0, parts))
    whole = [torch.where(not_here.all(0), torch.nan, found), sums[0], top, total, sums[1]]
    if mask is not None:
        whole = [torch.where(mask, x, 0.0) for x in whole]
    return Scored(*(x.to(dtype) for x in whole))


class _Rows(torch.autograd.Function):
    """What is left of whole rows, differentiable in this rank's slice of their logits."""

    @staticmethod
    def forward(ctx, logits, token, mask, inv_temperature, softcap, keep, inplace, gathered):
        whole = combine(gathered.unbind(1), mask)
        ctx.save_for_backward(logits, token, mask, inv_temperature, keep, *whole.statistics)
        ctx.softcap, ctx.inplace = softcap, inplace
        ctx.mark_non_differentiable(whole.row_max, whole.sum_pi_squared)
        ctx.set_materialize_grads(False)
        return tuple(whole)

    @staticmethod
    def backward(ctx, *grads):
        if not torch.compiler.is_compiling():  # AOTAutograd refuses by itself
            refuse_double_backward("token_logprob")
        upstream = upstream_of_scores(grads)
        if upstream is None:
            return (None,) * 8
        saved, token, mask, inv_temperature, keep, *statistics = ctx.saved_tensors
        rest = (token, mask, inv_temperature, ctx.softcap, keep, *statistics, *upstream)
        if not ctx.inplace or torch.compiler.is_compiling():
            return torch.ops.rlkern.token_logprob_backward(saved, *rest), *(None,) * 7
        logits = saved.detach()
        torch.ops.rlkern.token_logprob_backward_(logits, *rest)
        return logits, *(None,) * 7


def in_slice(part: Slice, size: int, token: Tensor, softmax: Softmax) -> tuple[Tensor, Softmax]:
    """Returns the tokens and kept sets of the whole vocabulary in ids of a slice of this size."""
    token = _to_slice(token, part.first, size, ABSENT)
    if softmax.keep is None:
        return token, softmax
    elsewhere = _to_slice(softmax.keep, part.first, size, _KEPT_ELSEWHERE)
    return token, softmax._replace(keep=torch.where(softmax.keep == -1, -1, elsewhere))


def gather_scores(part: Slice, token: Tensor, scored: Sequence[Tensor]) -> Tensor:
    """Returns (ranks, 5, ...): what is left of the rows of each rank's slice, for combine."""
    logprob, *others = scored
    logprob = torch.where(token == ABSENT, _NOT_HERE, logprob)
    return _gather(torch.stack([logprob, *others]), part.group)


def score(
    part: Slice, grid: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax, inplace: bool
) -> Scored:
    """Returns what is left of whole rows, the same bits on every rank; token and keep are global.

    The gradient is this rank's slice's, by the backward; with inplace written over its logits.
    """
    token, softmax = in_slice(part, grid.shape[-1], token, softmax)
    arguments = (token, mask, *softmax)
    scored = torch.ops.rlkern.token_logprob(grid.detach(), *arguments)
    gathered = gather_scores(part, token, scored)
    return Scored(*_Rows.apply(grid, *arguments, inplace, gathered))
