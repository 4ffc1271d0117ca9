# SPDX-License-Identifier: Apache-2.0
"""Checks and weights that the losses of value functions share."""

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.ops import _check as check

TABLES = (torch.float32, torch.float64)


def positive(op: str, name: str, x: object) -> float:
    """Returns x as a float; raises unless it is a number greater than 0."""
    value = check.number(op, name, x)
    if value <= 0:
        raise ValueError(f"{op}: {name} must be greater than 0, got {value}")
    return value


def known_kind(op: str, kind: str, known: tuple[str, ...]) -> None:
    """Raises ValueError unless the kind is one that is known."""
    if kind not in known:
        raise ValueError(f"{op}: kind must be one of {', '.join(known)}, got {kind!r}")


def weights_of(op: str, mask: Tensor, weight: Tensor | None, like: Tensor) -> Tensor:
    """Returns the weight of each element: the mean over the counted ones by default."""
    if weight is None:
        rows = mask.reshape(1, -1)  # a mean over elements, however they are arranged
        weight = aggregate.token_weight(rows, dtype=like.dtype).reshape(mask.shape)
    else:
        check.like(op, "weight", weight, mask.shape, mask, check.FLOATS)
        check.finite_values(op, "weight", weight, mask)
        weight = torch.where(mask, weight.detach(), 0.0)
    return weight.to(like.dtype).contiguous()


def constant(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns x as a contiguous constant of this dtype."""
    # Each of these calls costs a microsecond even where it changes nothing: tiny batches feel it.
    if x.requires_grad:
        x = x.detach()
    if x.dtype != dtype:
        x = x.to(dtype)
    return x if x.is_contiguous() else x.contiguous()
