# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that waits for the step to end."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any


class Interrupt:
    """Turns the first Ctrl-C (or SIGTERM) into a question, `asked`; the second one stops
    at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # Signals reach the main thread alone; in another one Ctrl-C keeps its usual meaning.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
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
