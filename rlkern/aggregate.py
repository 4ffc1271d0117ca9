# SPDX-License-Identifier: Apache-2.0
"""The one place that turns masks and counts into weights: loss = Σ_t weight_t · ℓ_t.

Whatever an algorithm divides by (tokens, sequences, a constant; of a micro-batch, an accumulation
window or all ranks) is in the weight before any kernel runs. No loss divides by a count.
"""

from functools import partial

import torch
from torch import Tensor

from rlkern.backends.eager import whiten as definition
from rlkern.backends.eager.levels import Sequences
from rlkern.backends.eager.whiten import EPS
from rlkern.ops import _check as check

MODES = ("token_mean", "sequence_token_mean", "sequence_token_sum", "token_sum")


def counted_tokens(mask: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns how many tokens of each sequence count: (B,), or (S,) with cu_seqlens; int64.

    mask is (..., T) bool, or (N,) with cu_seqlens (S + 1,), the bounds of packed sequences.

    >>> counted_tokens(torch.tensor([[True, False, True]])).tolist()
    [2]
    """
    if cu_seqlens is None:
        return mask.sum(-1)
    return torch.nn.functional.pad(mask.reshape(-1).cumsum(0), (1, 0))[cu_seqlens].diff()


def _lengths(counted: Tensor, mask: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the counted tokens of each sequence: one entry each, and at each of its tokens."""
    if bounds is None:
        lengths = counted.sum(-1, keepdim=True)
        return lengths, lengths
    lengths = counted_tokens(mask, cu_seqlens=bounds).to(counted.dtype)
    return lengths, lengths[Sequences(mask.shape, bounds).of_row]


def _given_count(op: str, count: float | Tensor, mask: Tensor) -> Tensor:
    if not isinstance(count, Tensor):
        count = torch.tensor(check.number(op, "count", count), dtype=torch.float64)
    if count.numel() != 1:
        raise ValueError(f"{op}: count must be one number, got {check.describe(count)}")
    # Of all batches together: 0 says that there is no token anywhere, so not here either.
    if check.checks_values() and not count >= mask.any():
        raise ValueError(f"{op}: count must be at least 1, got {count.item()}")
    return count.reshape(())


def token_weight(
    mask: Tensor,
    mode: str = "token_mean",
    *,
    count: float | Tensor | None = None,
    constant: float | None = None,
    dp_size: int = 1,
    cu_seqlens: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns the weight of each token in the loss; 0 where mask is False.

        token_mean           1 / count                      count: tokens       DAPO
        sequence_token_mean  1 / (tokens of its row·count)  count: sequences    GRPO
        sequence_token_sum   1 / (constant·count)           count: sequences    Dr. GRPO
        token_sum            1                              no count            verl's token-sum

    Arguments
        mask      (B, T) bool, True counts; (N,) with cu_seqlens
        mode      one of the four
        count     tokens or sequences of the whole batch (all micro-batches, all ranks), a number
                  or a tensor; by default those of this mask, rows without a token not counted
        constant  divisor of sequence_token_sum, such as the longest allowed answer; 1 by default
        dp_size   multiplies the weights: with a count of all ranks, the number of ranks whose
                  gradients DDP or FSDP averages (verl's and OpenRLHF's dp_size); 1 where they are
                  added, or where the count is the rank's own
        cu_seqlens  (S + 1,) bounds of the sequences in flat rows
        dtype     of the result, float32 or float64: a float64 loss has no more digits than its
                  weights
    Returns
        (B, T) of that dtype, or (N,); all zeros for a mask without a True
    Raises
        TypeError, ValueError  for a mask that is not (B, T) bool, or an unknown mode

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> token_weight(mask, "sequence_token_mean").tolist()
    [[0.25, 0.25], [0.5, 0.0]]
    """
    op = "token_weight"
    check.tensor(op, "mask", mask, (torch.bool,))
    bounds = check.sequence_bounds(op, cu_seqlens, mask.shape, mask.device)
    if mask.ndim != 2 and bounds is None:
        raise ValueError(
            f"{op}: mask must be (B, T), or (N,) with cu_seqlens, got {check.describe(mask)}"
        )
    if mode not in MODES:
        raise ValueError(f"{op}: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if constant is not None and mode != "sequence_token_sum":
        raise ValueError(f"{op}: constant belongs to mode 'sequence_token_sum', got mode {mode!r}")
    if constant is not None and not check.number(op, "constant", constant) > 0:
        raise ValueError(f"{op}: constant must be greater than 0, got {constant}")
    if not isinstance(dp_size, int) or isinstance(dp_size, bool) or dp_size < 1:
        raise ValueError(f"{op}: dp_size must be an integer of at least 1, got {dp_size!r}")
    if mode == "token_sum":
        if count is not None:
            raise ValueError(f"{op}: count must be None with mode 'token_sum', which divides by 1")
        return mask.to(dtype) * dp_size
    # Each of these calls is a launch on a GPU, so that one division makes the weights instead of a
    # reciprocal and a choice, and the mask is made a number once.
    counted = mask.to(dtype)
    total = None if count is None else _given_count(op, count, mask).to(mask.device, dtype)
    if mode == "token_mean":
        divisor = counted.sum() if total is None else total
    else:
        lengths, length_of_token = _lengths(counted, mask, bounds)
        # How many lengths are not 0.
        divisor = torch.linalg.vector_norm(lengths, 0) if total is None else total
        if mode == "sequence_token_mean":
            divisor = divisor * length_of_token
        elif constant is not None:
            divisor = divisor * constant
    weight = counted / divisor.clamp(min=torch.finfo(dtype).tiny)
    return weight if dp_size == 1 else weight * dp_size


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of x where mask is True, and 0 where nothing is.

    >>> masked_mean(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([True, True, False])).item()
    2.0
    """
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def sequence_mean(x: Tensor, mask: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns the mean over sequences of the mean over their counted elements, so that a long one
    counts once; 0 where nothing counts. Sequences without a counted element are left out.

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> sequence_mean(torch.tensor([[1.0, 3.0], [8.0, 9.0]]), mask).item()
    5.0
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = token_weight(mask, "sequence_token_mean", cu_seqlens=cu_seqlens, dtype=dtype)
    return torch.where(mask, weight * x, 0.0).sum()


def equal_weight(count: int) -> float:
    """Returns token_weight's token_mean of so many that all count, as a number.

    >>> equal_weight(4), equal_weight(0)
    (0.25, 1.0)
    """
    return 1.0 / max(count, 1)


def _all_reduced(sums: Tensor, group) -> Tensor:
    if group is not None:
        torch.distributed.all_reduce(sums, group=group)
    return sums


def whiten(x: Tensor, mask: Tensor, *, eps: float = EPS, ddof: int = 1, group=None) -> Tensor:
    """Returns x with mean 0 and variance 1 over the counted elements; 0 elsewhere.

        (x − mean) / √(variance + eps)

    The variance is divided by n − ddof: ddof = 1 is the convention of TRL and verl, OpenRLHF has 0.
    With a process group the counted elements are those of all its ranks, whose sums are added.

    >>> mask = torch.tensor([True, True, True, False])
    >>> whiten(torch.tensor([1.0, 3.0, 5.0, torch.nan]), mask).round(decimals=4).tolist()
    [-1.0, 0.0, 1.0, 0.0]
    """
    check.ddof("whiten", ddof)
    return definition.whiten(x, mask, eps=eps, ddof=ddof, reduce=partial(_all_reduced, group=group))


def center(x: Tensor, mask: Tensor, *, group=None) -> Tensor:
    """Returns x less its mean over the counted elements; 0 elsewhere.

    whiten without its division: OpenRLHF's no_std_norm. With a process group the mean is that of
    all its ranks.

    >>> center(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]
    """
    return definition.center(x, mask, reduce=partial(_all_reduced, group=group))[0]
