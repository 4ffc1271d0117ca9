# SPDX-License-Identifier: Apache-2.0
"""Scales a rollout correction to a mean of 1 over the batch."""

import torch
from torch import Tensor

from rlkern import aggregate


def batch_normalized(correction: Tensor, mask: Tensor) -> Tensor:
    """Returns the correction divided by its mean over the counted tokens.

    As verl's rollout_is_batch_normalize for corrections of tokens; for those of answers verl's mean
    is over answers. rlkern.advantage.batch_normalized is another function: it makes advantages.

    >>> batch_normalized(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])).tolist()
    [[0.5, 1.5]]
    """
    mean = aggregate.masked_mean(correction, mask)
    return torch.where(mask, correction / mean, 0.0)
