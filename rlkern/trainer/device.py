# SPDX-License-Identifier: Apache-2.0
"""The device of a run, and that its memory is full."""

from __future__ import annotations

import torch

from rlkern.runs.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Returns the device called cpu, cuda or auto; Raises UserError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch sees no GPU; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that there was no memory left, on a GPU or for the CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)
