# SPDX-License-Identifier: Apache-2.0
"""What the runs of every operation share, and their inputs moved by an ulp of float32."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rlkern.testing.cases import Batch, Case

Outputs = dict[str, Tensor]
EPS = torch.finfo(torch.float32).eps
_signs: torch.Generator | None = None


@contextlib.contextmanager
def moved(draw: int) -> Iterator[None]:
    """Moves every input that is made inside the with block by an ulp of float32, up or down.

    And every hyperbolic tangent: near 1, 1 − tanh², a softcap's gradient, has few digits.
    """
    global _signs
    _signs, exact = torch.Generator().manual_seed(draw), torch.tanh
    try:
        with mock.patch.object(torch, "tanh", lambda x: _moved(exact(x))):
            yield
    finally:
        _signs = None


def _moved(x: Tensor) -> Tensor:
    if _signs is None or not x.is_floating_point():
        return x
    sign = torch.randint(0, 2, x.shape, generator=_signs, dtype=torch.int8)
    return x * (1 + EPS * (2 * sign.to(torch.float64) - 1)).to(x.device)


def moved_batch(case: Case, batch: Batch) -> Batch:
    """Returns a float64 batch with every number moved; logits relative to the largest of a row.

    A maximum is subtracted without an error, and no result but lse depends on a common offset of a
    row's logits, unless they are capped.
    """
    rows: dict[str, Any] = {
        name: _moved(x) if isinstance(x, Tensor) else x
        for name, x in vars(batch).items()
        if name != "logits"
    }
    logits = batch.logits
    if case.softcap:
        logits = _moved(logits)
    elif logits.numel():
        largest = logits.nan_to_num(-torch.inf).amax(-1, keepdim=True).nan_to_num(0.0, 0.0, 0.0)
        logits = largest + _moved(logits - largest)
    return dataclasses.replace(batch, logits=logits, **rows)


def leaf_of(logits: Tensor) -> Tensor:
    # A clone of the storage behind the view, so that a strided view stays strided.
    base = logits._base if logits._base is not None else logits
    copy = base.clone().as_strided(logits.shape, logits.stride(), logits.storage_offset())
    return copy.requires_grad_()


def upstream(x: Tensor, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return _moved(torch.randn(x.shape, generator=random)).to(x.device, x.dtype)
