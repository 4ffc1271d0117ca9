# SPDX-License-Identifier: Apache-2.0
"""One file per stem: how conformance calls it. A file's RUNS are found by scanning."""

import importlib
import pkgutil
from collections.abc import Callable

from rlkern.testing.runs.inputs import Outputs

_MODULES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
# {operation: function of (case, batch)}
RUNS: dict[str, Callable[..., Outputs]] = {}
# The logits play no part in these: one dtype and the small cases are enough.
VECTOR_OPERATIONS: set[str] = set()
for _module in _MODULES:
    RUNS.update(getattr(_module, "RUNS", {}))
    VECTOR_OPERATIONS.update(getattr(_module, "VECTOR_OPERATIONS", ()))
