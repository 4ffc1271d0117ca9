# SPDX-License-Identifier: Apache-2.0
"""What is kept of a run: a few JSON lines, small enough for the tree.

The first line says what was run and where, one line follows for each evaluation, with the means of
the steps since the one before, and the last line is the summary. Of a pipeline's earlier stages the
summary holds the accuracies.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rlkern.compare.plan import Planned
from rlkern.runs.files import write_text
from rlkern.runs.logs import read_metrics
from rlkern.trainer.loop import SUMMARY

# Means over the steps of a point, and what the run counts from its start.
_MEANS = (
    "reward frac_reward_zero_std entropy clip_ratio/region_mean sampling/groups_trained"
    " completions/mean_length critic/vf_explained_var objective/kl rewards/accuracies"
    " rewards/margins"
).split()
_COUNTS = "sampling/generated_tokens sampling/groups_sampled sampling/useful_groups".split()
_EVALUATED = ("step", "seconds", "eval/accuracy", "eval/accuracy_sampled")
_SUMMARY = "steps backend skipped_updates num_tokens".split()


def points(lines: list[dict]) -> list[dict]:
    """Returns one line for each evaluation in the lines of a run's metrics.

    >>> points([{"step": 0, "eval/accuracy": 0.1}, {"step": 1, "reward": 0.2},
    ...         {"step": 2, "reward": 0.4, "eval/accuracy": 0.3}])
    [{'step': 0, 'eval/accuracy': 0.1}, {'step': 2, 'eval/accuracy': 0.3, 'reward': 0.3}]
    """
    found: list[dict] = []
    since: list[dict] = []
    kept = {*_MEANS, *_rewards(lines)}
    for line in lines:
        since.append(line)
        if "eval/accuracy" in line:
            found.append(_point(line, since, kept))
            since = []
    return found


def _rewards(lines: list[dict]) -> set[str]:
    """Returns the means of the rewards where there are several; one alone is the reward itself."""
    keys = {key for line in lines for key in line if key.startswith("rewards/")}
    found = {key for key in keys if key.endswith("/mean")}
    return found if len(found) > 1 else set()


def _point(line: dict, since: list[dict], kept: set[str]) -> dict[str, Any]:
    own = {key: line[key] for key in _EVALUATED if key in line}
    if own.get("eval/accuracy_sampled") == own["eval/accuracy"]:
        del own["eval/accuracy_sampled"]
    counts = {key: line[key] for key in _COUNTS if key in line}
    means = {}
    for key in dict.fromkeys(key for each in since for key in each if key in kept):
        values = [each[key] for each in since if each.get(key) is not None]
        if values:
            means[key] = sum(values) / len(values)
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


def write(folder: Path, planned: Planned, *, jobs: int, cost: dict[str, Any]) -> Path:
    """Returns the file that holds what is kept of a run that has ended; cost is of its process."""
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
        **cost,
        **{key: summary[key] for key in _SUMMARY if key in summary},
    }
    if planned.run is None:
        tail["stages"] = [_stage(path) for path in planned.stages]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{planned.label}.jsonl"
    lines = [head, *points(read_metrics(run)), tail]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path


def _stage(run: Path) -> dict[str, Any]:
    """Returns what a stage did to its held-out accuracy, which a reward model has of pairs."""
    summary = json.loads((run / SUMMARY).read_text())
    before, after = (_short(summary[f"eval/accuracy_{when}"]) for when in ("before", "after"))
    return {"stage": summary["algorithm"], "before": before, "after": after}


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
