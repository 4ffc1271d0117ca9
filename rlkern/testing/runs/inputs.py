# SPDX-License-Identifier: Apache-2.0
"""What the runs of every operation share."""

import torch
from torch import Tensor

Outputs = dict[str, Tensor]


def leaf_of(logits: Tensor) -> Tensor:
    # A clone of the storage behind the view, so that a strided view stays strided.
    base = logits._base if logits._base is not None else logits
    copy = base.clone().as_strided(logits.shape, logits.stride(), logits.storage_offset())
    return copy.requires_grad_()


def upstream(x: Tensor, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=random).to(x.device, x.dtype)
