# SPDX-License-Identifier: Apache-2.0
"""Drops bad answers that the policy has left far behind."""

from torch import Tensor

from rlkern.ops._mismatch import checked
from rlkern.ops._rows import of_each_token


def off_policy_sequence_mask(
    old_logprob: Tensor,
    rollout_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    threshold: float = 0.5,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Returns the mask without the bad answers that the policy has left far behind.

        dropped where A < 0 and (1/|o|)·Σ (log μ − log π_old) > threshold

    The sampler μ drew the tokens: the mean is k1's estimate of KL(μ‖π_old). Tokens of which either
    log-probability is NaN are left out of it.

    Paper: DeepSeek-V3.2, arXiv 2512.02556 (off-policy sequence masking). TRL and slime compare μ
    with the policy being trained; here it is the one of the last refresh.

    Arguments
        advantage  (B, T) or (B,) float; with cu_seqlens (N,) or (S,)
        the rest   as rollout_correction
    Returns
        (B, T) bool

    >>> import torch
    >>> old, rollout = torch.tensor([[-2.0], [-2.0]]), torch.tensor([[-1.0], [-1.0]])
    >>> mask, advantage = torch.tensor([[True], [True]]), torch.tensor([[1.0], [-1.0]])
    >>> off_policy_sequence_mask(old, rollout, advantage, mask).tolist()
    [[True], [False]]
    """
    op = "off_policy_sequence_mask"
    found = checked(op, old_logprob, rollout_logprob, mask, cu_seqlens)
    advantage = of_each_token(op, "advantage", advantage, mask.shape, found.sequences.cu_seqlens)
    near = found.answers(found.mean(-found.log_ratio) <= threshold)
    return mask & (near | ~(advantage < 0))
