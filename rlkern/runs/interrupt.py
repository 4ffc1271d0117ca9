# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that waits for the step to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The one that holds the handlers of this process; children made by fork give it up.
_active: list[Interrupt] = []
_masks = threading.local()


class Interrupt:
    """Turns the first Ctrl-C (or SIGTERM) into a question, `asked`; the second one stops
    at once.

    Only in this process: a child that a reward makes by fork has the handlers from before, so it
    ends by SIGTERM as it would without a trainer.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # Signals reach the main thread alone; in another one Ctrl-C keeps its usual meaning.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
            _active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()
        _active[:] = [other for other in _active if other is not self]

    def give_up(self) -> None:
        """Puts back the handlers that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(
            "\nstopping after this step and a checkpoint; once more to stop at once",
            file=sys.stderr,
        )


def _hold() -> None:
    # A signal that reaches a child before it has its own handlers waits until it has.
    if _active:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _release() -> None:
    if _active:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _release_child() -> None:
    for each in reversed(_active):
        each.give_up()
    _release()
    _active.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_release_child)
