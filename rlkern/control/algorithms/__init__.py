# SPDX-License-Identifier: Apache-2.0
"""One classic algorithm, one file: equation, paper, settings with their sources, update."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from rlkern.control.declaration import ControlAlgorithm


@cache
def algorithms() -> dict[str, ControlAlgorithm]:
    """Returns the declaration of every file in this folder by its name.

    >>> algorithms()["q_learning"].on_policy
    False
    """
    found = {}
    for module in pkgutil.iter_modules(__path__):
        declared = importlib.import_module(f"{__name__}.{module.name}").ALGORITHM
        if declared.name != module.name:
            raise ValueError(f"{module.name}.py declares {declared.name!r}")
        found[declared.name] = declared
    return found
