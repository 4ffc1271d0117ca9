# SPDX-License-Identifier: Apache-2.0
"""The backends that tests ask by name, each for the operations that it has."""

import contextlib

import pytest

import rlkern
from rlkern.backends import BACKENDS, _load

# Those that are chosen and can serve here; Triton's kernels run on the CPU by their interpreter.
CHOSEN = [b.name for b in BACKENDS if b.by_name is None and _load(b.name)[1] is None]


@contextlib.contextmanager
def skipping_what_is_absent():
    """Skips a test of a backend that has no function for the operation: the next one serves it.

    tests/test_backends.py holds what each of our own backends has, so none of theirs is lost here.
    """
    try:
        yield
    except rlkern.BackendUnavailable as error:
        if ": has no " not in str(error):
            raise
        pytest.skip(str(error))


@contextlib.contextmanager
def served_by(name):
    """Makes a backend serve the with block, and skips the test of a function that it lacks."""
    with skipping_what_is_absent(), rlkern.use_backend(name):
        yield
