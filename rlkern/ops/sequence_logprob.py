# SPDX-License-Identifier: Apache-2.0
"""From log-probabilities of tokens to those of sequences: sums, padded or packed."""

import torch
from torch import Tensor

from rlkern.aggregate import counted_tokens
from rlkern.backends.eager.levels import Sequences
from rlkern.ops import _check as check
from rlkern.ops._library import refuse_double_backward

# Elements that are added at once. Blocks are counted from a sequence's beginning and added one
# after the other, so that neither padding nor neighbours change the order of a sum.
_BLOCK = 64


def _in_blocks(x: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns x (blocks, _BLOCK) with zeros between sequences, and where their blocks begin."""
    if bounds is None:
        rows, length = x.shape
        per_row = -(-length // _BLOCK)
        if per_row * _BLOCK != length:  # pad copies even where there is nothing to add
            x = torch.nn.functional.pad(x, (0, per_row * _BLOCK - length))
        begin = torch.arange(rows + 1, device=x.device) * per_row
        return x.reshape(rows * per_row, _BLOCK), begin
    blocks = -(-bounds.diff() // _BLOCK)
    begin = torch.nn.functional.pad(blocks.cumsum(0), (1, 0))
    row = torch.repeat_interleave(bounds.diff(), output_size=x.numel())
    place = torch.arange(x.numel(), device=x.device) + (begin * _BLOCK - bounds)[row]
    room = x.new_zeros(x.numel() // _BLOCK + blocks.numel(), _BLOCK)
    return room.view(-1).index_copy(0, place, x).view_as(room), begin


class _Sum(torch.autograd.Function):
    """Sums over the counted elements of each sequence, in float64, rounded once."""

    @staticmethod
    def forward(ctx, x, mask, bounds):
        ctx.save_for_backward(mask, bounds)
        blocks, begin = _in_blocks(torch.where(mask, x, 0.0), bounds)
        sums = blocks.sum(-1, dtype=torch.float64)
        total = torch.segment_reduce(sums, "sum", offsets=begin, initial=0, axis=0)
        return total.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        if not torch.compiler.is_compiling():  # AOTAutograd refuses by itself
            refuse_double_backward("sequence_logprob")
        mask, bounds = ctx.saved_tensors
        if bounds is None:
            return torch.where(mask, grad[:, None], 0.0), None, None
        row = Sequences(mask.shape, bounds).of_row
        return torch.where(mask, grad[row], 0.0), None, None


def _checked(
    op: str, logprob: Tensor, mask: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Returns log-probabilities in the dtype of the result, and the bounds of packed sequences."""
    check.tensor(op, "logprob", logprob, check.FLOATS)
    check.like(op, "mask", mask, logprob.shape, logprob, (torch.bool,))
    bounds = check.sequence_bounds(op, cu_seqlens, logprob.shape, logprob.device)
    if bounds is None and logprob.ndim != 2:
        raise ValueError(f"{op}: logprob must be (B, T), got {check.describe(logprob)}")
    check.finite_values(op, "logprob", logprob, mask)
    return (logprob if logprob.dtype == torch.float64 else logprob.float()), bounds


def sequence_logprob(logprob: Tensor, mask: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns the log-probability of each sequence: Σ_t logprob_t over its counted tokens.

    Added in float64, rounded once. Padded and packed input give the same bits.

    Arguments
        logprob     (B, T) float, or (N,) with cu_seqlens; anything where mask is False
        mask        of the same shape, bool, True counts
        cu_seqlens  (B + 1,) int: sequence b lies in cu_seqlens[b] to cu_seqlens[b + 1]
    Returns
        (B,) float32, float64 for float64; 0 for a sequence without a counted token
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
        RuntimeError           on double backward
    Gradient
        to logprob

    >>> logprob = torch.tensor([[-1.0, -2.0], [-3.0, torch.nan]])
    >>> sequence_logprob(logprob, torch.tensor([[True, True], [True, False]])).tolist()
    [-3.0, -3.0]
    """
    x, bounds = _checked("sequence_logprob", logprob, mask, cu_seqlens)
    return _Sum.apply(x, mask, bounds)


def ld_sequence_logprob(
    logprob: Tensor,
    mask: Tensor,
    public_length: Tensor,
    *,
    ld_alpha: float,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns LD-DPO's log-probability of each sequence: what is longer than its rival weighs less.

        Σ_{t ≤ l} logprob_t + ld_alpha·Σ_{t > l} logprob_t,      l = public_length

    over the counted tokens, the first of which is t = 1. l is the length of the shorter answer of
    the pair, and the loss is DPO's of such sums, under the policy and under the reference. 1 is
    sequence_logprob, and 0 looks at the first l tokens alone.

    Paper: LD-DPO, arXiv 2409.06411. As TRL's ld_alpha; its versions of 2025 counted places instead
    of tokens, the same where an answer has no holes.

    Arguments
        logprob, mask, cu_seqlens  as of sequence_logprob
        public_length  (B,) int64 or int32, such as torch.minimum of both answers' mask.sum(-1)
        ld_alpha       from 0 to 1
    Returns, raises, gradient
        as sequence_logprob

    >>> logprob, mask = torch.tensor([[-1.0, -2.0, -4.0]]), torch.ones(1, 3, dtype=torch.bool)
    >>> ld_sequence_logprob(logprob, mask, torch.tensor([2]), ld_alpha=0.5).tolist()
    [-5.0]
    """
    op = "ld_sequence_logprob"
    x, bounds = _checked(op, logprob, mask, cu_seqlens)
    share = check.number(op, "ld_alpha", ld_alpha)
    if not 0 <= share <= 1:
        raise ValueError(f"{op}: ld_alpha must be from 0 to 1, got {ld_alpha}")
    sequences = mask.shape[0] if bounds is None else bounds.numel() - 1
    check.like(op, "public_length", public_length, torch.Size([sequences]), mask, check.INTEGERS)
    place = mask.cumsum(-1)
    if bounds is None:
        public = public_length[:, None]
    else:
        row = Sequences(mask.shape, bounds).of_row
        place = place - torch.nn.functional.pad(place, (1, 0))[bounds[:-1]][row]
        public = public_length[row]
    return _Sum.apply(torch.where(place <= public, x, share * x), mask, bounds)


def mean_sequence_logprob(
    logprob: Tensor, mask: Tensor, *, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Returns the mean log-probability per counted token of each sequence.

    Arguments, gradient and errors are those of sequence_logprob.

    >>> logprob, cu_seqlens = torch.tensor([-1.0, -2.0, -5.0]), torch.tensor([0, 2, 3])
    >>> mean_sequence_logprob(logprob, torch.ones(3).bool(), cu_seqlens=cu_seqlens).tolist()
    [-1.5, -5.0]
    """
    x, bounds = _checked("mean_sequence_logprob", logprob, mask, cu_seqlens)
    return _Sum.apply(x, mask, bounds) / counted_tokens(mask, cu_seqlens=bounds).clamp(min=1)
