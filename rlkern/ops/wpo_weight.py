# SPDX-License-Identifier: Apache-2.0
"""WPO's weight of an answer: how likely the policy is to have written it."""

import torch
from torch import Tensor

from rlkern.ops import _check as check
from rlkern.ops.sequence_logprob import mean_sequence_logprob


def wpo_weight(
    logprob: Tensor, sum_pi_squared: Tensor, mask: Tensor, *, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Returns WPO's weight of each answer, a constant.

        w = exp((1/|o|)·Σ_t (log π(o_t) − log Σ_v π(v)²))

    Σ_v π(v)² is the expected probability of a token that the policy draws, so that an answer of its
    own weighs about 1. The weight of a pair in preference_loss is the product of both answers',
    divided by the number of pairs: `chosen * rejected / pairs`. As TRL's use_weighting; its
    versions of 2025 held the product at 1 at most, `(chosen * rejected).clamp(max=1)`.

    Paper: WPO, arXiv 2406.11827, eq. 2 with sampled alignment.

    Arguments
        logprob         (B, T) float, log π; (N,) with cu_seqlens; anything where mask is False
        sum_pi_squared  of the same shape, as token_logprob and linear_token_logprob return it
        mask            of the same shape, bool, True counts
        cu_seqlens      (B + 1,) bounds of the answers in flat rows
    Returns
        (B,) float32, float64 for float64; 1 for an answer without a counted token
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none

    >>> logprob, squares = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.5, 0.5]])
    >>> round(wpo_weight(logprob, squares, torch.tensor([[True, True]])).item(), 4)
    0.7071

    The ratios are 1 and 1/2, and their geometric mean is √½.
    """
    op = "wpo_weight"
    check.tensor(op, "logprob", logprob, check.FLOATS)
    check.like(op, "sum_pi_squared", sum_pi_squared, logprob.shape, logprob, check.FLOATS)
    check.like(op, "mask", mask, logprob.shape, logprob, (torch.bool,))
    check.positive_values(op, "sum_pi_squared", sum_pi_squared, mask)
    wide = logprob if logprob.dtype == torch.float64 else logprob.float()
    ahead = wide.detach() - sum_pi_squared.detach().to(wide.dtype).log()
    return mean_sequence_logprob(ahead, mask, cu_seqlens=cu_seqlens).exp()
