# SPDX-License-Identifier: Apache-2.0
"""Errors that a person can act on."""

from __future__ import annotations


class UserError(Exception):
    """One sentence for the person at the terminal; the command line prints it without
    a traceback."""

    def __init__(self, sentence: str, *, code: int = 2) -> None:
        super().__init__(sentence)
        self.code = code


class NotFinite(UserError):
    """Numbers that no run goes on from: logits that are NaN or infinite."""


class RewardError(UserError):
    """A reward that failed inside a step: the run is saved as it was before the step, and ends."""
