# SPDX-License-Identifier: Apache-2.0
"""Scales a rollout correction to a mean of 1 over the batch."""

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.ops import _check as check


def batch_normalized(
    correction: Tensor, mask: Tensor, *, over: str = "token", cu_seqlens: Tensor | None = None
) -> Tensor:
    """Returns the correction divided by its mean over the batch (verl's batch_normalize).

    over "token" that mean is over the counted tokens. Over "sequence" it is the mean over answers
    of the mean over their tokens, so that a long answer counts once: verl's rule for rollout_is
    "sequence", where an answer has one factor. Answers without a counted token are left out.

    rlkern.advantage.batch_normalized is another function: it makes advantages of rewards.

    Arguments
        correction  (B, T) float, such as of rollout_correction; (N,) with cu_seqlens
        mask        of the same shape, bool, True counts
        over        token or sequence
        cu_seqlens  (S + 1,) bounds of the answers in flat rows
    Returns
        of the shape of correction, 0 where mask is False; all zeros where the mean is 0
    Raises
        TypeError, ValueError  for a wrong dtype, shape, device or over
    Gradient
        none: the result is a constant

    >>> batch_normalized(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])).tolist()
    [[0.5, 1.5]]
    """
    op = "batch_normalized"
    if over not in ("token", "sequence"):
        raise ValueError(f"{op}: over must be token or sequence, got {over!r}")
    check.tensor(op, "correction", correction, check.FLOATS)
    check.like(op, "mask", mask, correction.shape, correction, (torch.bool,))
    bounds = check.sequence_bounds(op, cu_seqlens, mask.shape, mask.device)
    rows = torch.where(mask, correction.detach(), 0.0)
    if over == "token":
        mean = aggregate.masked_mean(rows, mask)
    elif bounds is None and mask.ndim != 2:
        raise ValueError(f"{op}: correction must be (B, T), got {check.describe(correction)}")
    else:
        mean = aggregate.sequence_mean(rows, mask, cu_seqlens=bounds)
    return rows / torch.where(mean == 0, 1.0, mean)  # a batch that is dropped whole stays dropped
