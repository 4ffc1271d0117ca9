# SPDX-License-Identifier: Apache-2.0
"""Hands gae to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.eager.whiten import EPS
from rlkern.backends.memory import fresh


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    ddof: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns (advantage, target) in one sweep over the steps; whitening is a second."""
    advantage, target = fresh(reward.shape, reward), fresh(reward.shape, reward)
    _C.gae(
        reward=reward,
        value=value,
        mask=mask,
        coefficients=coefficients,
        bootstrap=bootstrap,
        cu_seqlens=cu_seqlens,
        whitening=None if ddof is None else (EPS, ddof),
        advantage=advantage,
        target=target,
        threads=torch.get_num_threads(),
    )
    return advantage, target
