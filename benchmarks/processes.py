# SPDX-License-Identifier: Apache-2.0
"""Processes that measure: what one of its own found, or in a sentence why there is nothing of it,
and how a program ends that is stopped."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_END = 2000  # characters of what a failed process says, of which the last ones have the reason


def said(words: Sequence[str], given: str = "", variables: Mapping[str, str] | None = None) -> Any:
    """Returns the JSON of the last line that a process prints. Raises RuntimeError if it fails, is
    killed, or prints none.

    given      what it reads
    variables  those of its environment that differ from ours
    """
    done = subprocess.run(
        words, input=given, capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **(variables or {})},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(_failed(words, ended(done.returncode), done.stderr))
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = done.stdout.strip()[-80:]
        why = f"must print a line of JSON last, got {last!r}"
        raise RuntimeError(_failed(words, why, done.stderr)) from None


def stoppable(main: Callable[[], int | None]) -> int:
    """Returns the exit status of a program, in which Ctrl-C is a line: what was written stays."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        print("stopped: what this run had not written yet is not on record", file=sys.stderr)
        return 128 + signal.SIGINT


def _failed(words: Sequence[str], why: str, stderr: str) -> str:
    told = stderr.strip()[-_END:] or "it said nothing"
    return f"{Path(words[0]).name} {' '.join(words[1:])} {why}: {told}"


def ended(status: int) -> str:
    """Returns how a process ended.

    >>> ended(3), ended(-9)
    ('ended with exit status 3', 'was ended by SIGKILL')
    """
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
