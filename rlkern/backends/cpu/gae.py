# SPDX-License-Identifier: Apache-2.0
"""Hands gae to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.cpu.arguments import addresses
from rlkern.backends.cpu.reverse_scan import sequences
from rlkern.backends.eager.whiten import EPS
from rlkern.backends.memory import fresh


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    whiten: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns (advantage, target) in one sweep over the steps; whitening is a second."""
    advantage, target = fresh(reward.shape, reward), fresh(reward.shape, reward)
    _C.gae(
        reward.numel(),
        sequences(reward, cu_seqlens),
        reward.dtype == torch.float64,
        addresses(reward, value, mask, bootstrap, advantage, target),
        (coefficients.data_ptr(), coefficients.ndim == 2),
        (EPS, 1) if whiten else None,
        torch.get_num_threads(),
    )
    return advantage, target
