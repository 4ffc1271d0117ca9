# SPDX-License-Identifier: Apache-2.0
"""The settings of a run: made once, from files and flags, into one immutable object.

Nothing here imports torch, so that help and mistakes appear at once.
"""

from rlkern.runs.settings.layers import Layer
from rlkern.trainer.settings.resolve import changed, differing, dump, of, resolve
from rlkern.trainer.settings.schema import Settings

__all__ = ["Layer", "Settings", "changed", "differing", "dump", "of", "resolve"]
