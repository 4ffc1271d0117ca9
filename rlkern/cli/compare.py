# SPDX-License-Identifier: Apache-2.0
"""`rlkern compare`: several algorithms and seeds on one task, and the pages of what they did."""

from __future__ import annotations

from rlkern.cli.guard import guarded


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern compare`."""
    return guarded("compare", lambda: _compare(arguments))


def _compare(arguments: list[str]) -> int:
    from rlkern.compare.command import main

    try:
        return main(arguments)
    except SystemExit as end:
        # argparse has printed its own sentence, or the help.
        return int(end.code or 0)
