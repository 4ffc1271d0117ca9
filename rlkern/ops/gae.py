# SPDX-License-Identifier: Apache-2.0
"""The operation gae: advantages and value targets in one call. Its results are constants."""

import torch

from rlkern.backends import implementation
from rlkern.ops.library import register

gae = register(
    "gae(Tensor reward, Tensor value, Tensor mask, Tensor coefficients, Tensor? bootstrap,"
    " Tensor? cu_seqlens, bool whiten) -> (Tensor, Tensor)",
    lambda reward, *rest: implementation("gae", reward)(reward, *rest),
    lambda reward, *rest: (torch.empty_like(reward), torch.empty_like(reward)),
)
