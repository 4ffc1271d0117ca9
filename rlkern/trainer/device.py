# SPDX-License-Identifier: Apache-2.0
"""The device of a run."""

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
