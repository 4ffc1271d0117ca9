# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl, one line for each logged step, and the trackers that get the same."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rlkern.runs.files import write_text
from rlkern.runs.trackers import Tracker

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    path = run / METRICS
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


class Log:
    """Writes metrics as they come; after a resume the lines past the checkpoint are gone."""

    def __init__(self, run: Path, *, step: int, trackers: Sequence[Tracker] = ()) -> None:
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        write_text(run / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        self._file, self._trackers = (run / METRICS).open("a"), trackers

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line and hands it to the system at once, so that a kill loses nothing
        written."""
        # JSON has no NaN: what is not finite is null, and skipped_updates tells why.
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, values)

    def flush(self) -> None:
        """Brings the trackers up to date."""
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Closes the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


class NoLog:
    """Stands in for the log in processes that write nothing."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    close = flush
