# SPDX-License-Identifier: Apache-2.0
"""What is kept of a run: a few JSON lines, small enough for the tree.

The first line says what was run and where, one line follows for each evaluation, with the means of
the steps since the one before, and the last line is the summary.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rlkern.compare.plan import Planned
from rlkern.trainer.files import write_text
from rlkern.trainer.logs import read_metrics
from rlkern.trainer.loop import SUMMARY

# Means over the steps of a point, and what the run counts from its start.
_MEANS = (
    "reward reward_std frac_reward_zero_std kl entropy loss grad_norm clip_ratio/region_mean"
    " completions/mean_length completions/clipped_ratio sampling/groups_trained objective/kl"
    " critic/vf_explained_var"
).split()
_MEAN_PREFIXES = ("rewards/",)
_COUNTS = (
    "num_tokens sampling/generated_tokens sampling/groups_sampled sampling/useful_groups".split()
)
_SUMMARY = "steps backend skipped_updates num_tokens".split()


def points(lines: list[dict]) -> list[dict]:
    """Returns one line for each evaluation in the lines of a run's metrics.

    >>> points([{"step": 0, "eval/accuracy": 0.1}, {"step": 1, "reward": 0.2},
    ...         {"step": 2, "reward": 0.4, "eval/accuracy": 0.3}])
    [{'step': 0, 'eval/accuracy': 0.1}, {'step': 2, 'eval/accuracy': 0.3, 'reward': 0.3}]
    """
    found, since = [], []
    for line in lines:
        since.append(line)
        if "eval/accuracy" in line:
            found.append(_point(line, since))
            since = []
    return found


def _point(line: dict, since: list[dict]) -> dict[str, Any]:
    own = {k: v for k, v in line.items() if k in ("step", "seconds") or k.startswith("eval/")}
    means, counts = {}, {}
    for key in dict.fromkeys(key for each in since for key in each):
        values = [each[key] for each in since if each.get(key) is not None]
        if values and (key in _MEANS or key.startswith(_MEAN_PREFIXES)):
            means[key] = sum(values) / len(values)
        elif values and key in _COUNTS:
            counts[key] = values[-1]
    return {key: _short(value) for key, value in {**own, **means, **counts}.items()}


def _short(value: Any) -> Any:
    """Returns a float with five digits, which is more than a plot or a table shows."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """Returns what measured times depend on."""
    return {"cpu": _processor(), "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return named[0] if named else platform.machine()


def write(
    folder: Path, planned: Planned, *, jobs: int, wall_seconds: float, peak_bytes: int
) -> Path:
    """Returns the file that holds what is kept of a run that has ended."""
    run = planned.measured
    summary = json.loads((run / SUMMARY).read_text())
    head = {
        "algorithm": planned.algorithm,
        "seed": planned.seed,
        "settings": planned.settings,
        "start": planned.start,
        "where": {**machine(), "jobs": jobs},
    }
    tail = {
        "wall_seconds": round(wall_seconds, 2),
        "peak_bytes": peak_bytes,
        **{key: summary[key] for key in _SUMMARY if key in summary},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{planned.label}.jsonl"
    lines = [head, *points(read_metrics(run)), tail]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path


def is_recorded(folder: Path, planned: Planned) -> bool:
    """Returns True where a whole record of the same settings lies in the folder."""
    lines = read(folder / f"{planned.label}.jsonl")
    same = bool(lines) and [lines[0]["settings"], lines[0]["start"]] == json.loads(
        json.dumps([planned.settings, planned.start])
    )
    return same and "wall_seconds" in lines[-1]


def read(path: Path) -> list[dict]:
    """Returns the lines of a record; none where there is no file."""
    return _parse(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else []


def _parse(lines: Iterable[str]) -> list[dict]:
    return [json.loads(line) for line in lines if line.strip()]
