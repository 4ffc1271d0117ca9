# SPDX-License-Identifier: Apache-2.0
"""Finds the token at which an answer's reward belongs."""

import torch
from torch import Tensor

from rlkern.backends.eager.reverse_scan import last_counted_steps
from rlkern.ops import _check as check


def last_counted(mask: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns where the last counted token of each sequence is; masks may have holes.

    TRL's PPO finds it by the length of the answer, OpenRLHF by the last True of the action mask.

    Arguments
        mask        (..., T) bool, True counts; (N,) with cu_seqlens
        cu_seqlens  (S + 1,) int64 or int32 bounds of the sequences in flat rows
    Returns
        bool of the shape of mask, False throughout a sequence without a counted token
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device

    >>> last_counted(torch.tensor([[True, False, True, False]])).tolist()
    [[False, False, True, False]]
    """
    op = "last_counted"
    check.tensor(op, "mask", mask, (torch.bool,))
    if mask.ndim == 0:
        raise ValueError(f"{op}: mask must have a time dimension, got a scalar")
    return last_counted_steps(mask, check.sequence_bounds(op, cu_seqlens, mask.shape, mask.device))
