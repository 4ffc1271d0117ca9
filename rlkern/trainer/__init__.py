# SPDX-License-Identifier: Apache-2.0
"""The minimal trainer: rollouts, rewards, one loss call, one optimizer step, all of it saved."""

import importlib
from typing import Any

# Imported when they are asked for, because settings and help are read without torch.
_HOMES = {
    "Settings": "rlkern.trainer.settings",
    "UserError": "rlkern.runs.errors",
    "train": "rlkern.trainer.loop",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
