# SPDX-License-Identifier: Apache-2.0
"""VAPO's λ, one for each sequence."""

import torch
from torch import Tensor

from rlkern.aggregate import counted_tokens
from rlkern.ops import _check as check
from rlkern.ops._steps import steps


def length_adaptive_lambda(
    mask: Tensor, *, alpha: float = 0.05, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Returns λ = 1 − 1/(alpha·length) of each sequence, by its number of counted tokens.

    Paper: VAPO, arXiv 2504.05118, §4.2: the sum of λ's weights, 1/(1 − λ), is alpha·length.
    Below a length of 1/alpha the formula is negative; λ is 0 there.

    Arguments
        mask        (..., T) bool, True counts; packed sequences are (N,)
        alpha       0.05 in the paper
        cu_seqlens  (S + 1,) int64 or int32: where each packed sequence begins, and the last ends
    Returns
        one float64 number per sequence, for gae's gae_lambda

    >>> length_adaptive_lambda(torch.ones(1, 100, dtype=torch.bool)).tolist()
    [0.8]
    """
    op = "length_adaptive_lambda"
    check.tensor(op, "mask", mask, (torch.bool,))
    rows = steps(op, mask.to(torch.float64), mask, cu_seqlens)
    alpha = check.number(op, "alpha", alpha)
    if alpha <= 0:
        raise ValueError(f"{op}: alpha must be greater than 0, got {alpha}")
    length = counted_tokens(mask, cu_seqlens=rows.cu_seqlens)
    return (1 - 1 / (alpha * length.clamp(min=1).to(torch.float64))).clamp(min=0)
