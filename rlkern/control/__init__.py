# SPDX-License-Identifier: Apache-2.0
"""The classic algorithms on environments of gymnasium, with the operations of language models."""

from rlkern.control.algorithms import algorithms
from rlkern.control.loop import train
from rlkern.control.settings import Settings, of, resolve

__all__ = ["Settings", "algorithms", "of", "resolve", "train"]
