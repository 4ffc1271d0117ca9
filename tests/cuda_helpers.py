# SPDX-License-Identifier: Apache-2.0
"""What the tests of the cuda backend share."""

from rlkern.backends import _load, _resolve
from rlkern.backends.cuda.library import load_library


def forget() -> None:
    """Makes the next use of the cuda backend load its library again."""
    for function in (load_library, _load, _resolve):
        function.cache_clear()
