# SPDX-License-Identifier: Apache-2.0
"""rlkern: fused kernels for reinforcement learning on language models."""

import importlib
from typing import TYPE_CHECKING, Any

# At once, and without torch: later the folder of this name would take the function's place.
from rlkern.algorithms import algorithms  # noqa: F401

if TYPE_CHECKING:
    from rlkern._exports import *  # noqa: F403

__version__ = "0.1.0.dev0"
_MODULES = ("advantage", "aggregate", "sampling", "statistics")


def __getattr__(name: str) -> Any:
    """Returns a public name; the first one imports torch and every operation.

    The command line's help and its complaints about settings come without that.
    """
    if name in _MODULES:
        # An operation imports these while the table of exports may wait for the operation itself.
        return importlib.import_module(f"rlkern.{name}")
    if not name.startswith("_") or name == "__all__":
        exports = importlib.import_module("rlkern._exports")
        if name in vars(exports):
            found = getattr(exports, "__all__", [])  # not there yet while it is being imported
            globals().update({each: getattr(exports, each) for each in found}, __all__=found)
            return getattr(exports, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
