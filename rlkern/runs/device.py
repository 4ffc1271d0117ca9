# SPDX-License-Identifier: Apache-2.0
"""The device of a run, and that its memory is full."""

from __future__ import annotations

import ctypes

import torch

from rlkern.runs.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Returns the device called cpu, cuda or auto; Raises UserError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device must be cpu or auto, because torch sees no GPU, got {name}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that there was no memory left, on a GPU or for the CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)


def give_back_memory() -> None:
    """Gives the memory that was freed back to the system, where glibc keeps it between what is
    still in use; elsewhere does nothing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has none to open
        return
    trim(0)
