# SPDX-License-Identifier: Apache-2.0
"""Many small falls, each within the spread of the run before: a run is compared with the best one.

A run takes the place of the one before it, so the history of the results file is the only memory of
how fast a machine once was. The best of several runs is lucky by their noise, which is why a line
asks for the same distance as a fall does, both spreads, and fails nothing (LOG.md has how often it
is wrong). A benchmark that comes to measure something else needs another name.
"""

import json
from pathlib import Path

from benchmarks import fields, promises, report


def past(path: Path, where: dict[str, object]) -> list[report.Times]:
    """Returns what each commit of a results file has of a machine, the newest first; lines that
    are written in another way than today's are left out."""
    name = path.relative_to(report.RESULTS.parent).as_posix()
    commits = report.git("log", "--format=%h", "--", name).split()
    texts = [report.git("show", f"{commit}:./{name}") for commit in commits]
    return [report.on_record(_readable(text, path.name), where) for text in texts]


def _readable(text: str, name: str) -> list[dict]:
    found = list[dict]()
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if fields.problem(row, name) is None:
            found.append(row)
    return found


def lines(times: report.Times, before: list[report.Times]) -> list[str]:
    """Returns a line for each ratio that is worse than in its best run by more than both their
    spreads.

    >>> def of(ms):
    ...     copy, ours = report.Timing(1, 1, 1, 1), report.Timing(ms, 0.9 * ms, 1.1 * ms, ms)
    ...     return {"g": {"memcpy_of_x": copy, "rlkern_x": ours}}
    >>> lines(of(1.15), [of(1.1), of(1.0)])
    []
    >>> lines(of(1.3), [of(1.2), of(1.1), of(1.0)])
    ['DRIFTED         g: memcpy_of_x / rlkern_x = 0.769 (0.699–0.855), at best 1 (0.909–1.11)']
    """
    found = list[str]()
    for check in promises.compared(times):
        known = [x for x in map(check.spread, before) if x is not None]
        now = check.spread(times)
        if not known or now is None:
            continue
        sign = -1 if check.sign == "<=" else 1
        best = max(known, key=lambda spread: sign * spread[1])
        if now[0] > best[2] if sign < 0 else now[2] < best[0]:
            found.append(promises.line("DRIFTED", check, now, "at best", best))
    return found
