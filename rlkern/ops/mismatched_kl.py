# SPDX-License-Identifier: Apache-2.0
"""KTO's estimate of a divergence."""

import torch
from torch import Tensor

from rlkern.ops._preference import Rows, weighted_sum


def mismatched_kl(logprob: Tensor, ref_logprob: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Returns KTO's estimate of the KL divergence: max(0, mean(log π − log π_ref)), a constant.

    Of answers that belong to other prompts: TRL and the paper's authors shift the answers of a
    batch by one. The mean is of this batch; with several ranks give each the mean of all of them.
    Whoever wrote the data set drew these answers, not π: it is a zero point, no unbiased estimate.

    Paper: arXiv 2402.01306, §4.2.

    Arguments
        logprob, ref_logprob  (B,) float, of the mismatched answers, summed over tokens
        mask                  (B,) bool, True counts; all by default
    Returns
        scalar float32, float64 for float64
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none

    >>> mismatched_kl(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -2.0])).item()
    1.0
    """
    rows = Rows.of("mismatched_kl", "logprob", logprob, mask)
    with torch.no_grad():
        log_pi, log_ref = rows.logprobs({"logprob": logprob, "ref_logprob": ref_logprob})
        return weighted_sum(rows.weights(None), log_pi - log_ref).clamp(min=0)
