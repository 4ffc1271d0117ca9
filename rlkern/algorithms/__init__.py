# SPDX-License-Identifier: Apache-2.0
"""One algorithm, one file: equation, paper, defaults with their source, and a declaration."""

from rlkern.algorithms.registry import (
    Algorithm,
    BaseAlgorithm,
    OfflineAlgorithm,
    algorithm,
    algorithms,
    declarations,
    offline_algorithms,
    scan,
)

scan(__name__, __path__)

__all__ = [
    "Algorithm",
    "BaseAlgorithm",
    "OfflineAlgorithm",
    "algorithm",
    "algorithms",
    "declarations",
    "offline_algorithms",
]
