# SPDX-License-Identifier: Apache-2.0
"""The runs of the control suite, benchmarks/control.yaml, and what is on record of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkern.control.settings import RESUMABLE, of
from rlkern.runs.settings.yaml_file import read

HERE = Path(__file__).resolve().parent
SUITE, RECORDS = HERE / "control.yaml", HERE / "results/control/runs.jsonl"


@dataclass(frozen=True)
class Planned:
    """A run of the suite with one seed, and the return that it has to reach."""

    algorithm: str
    env: str
    seed: int
    at_least: float
    own: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        """What a person calls it."""
        return f"{self.algorithm}/{self.env}"

    def settings(self) -> dict[str, Any]:
        """Returns what decides the result of the run."""
        found = of(algorithm=self.algorithm, env=self.env, seed=self.seed, **dict(self.own))
        return {k: v for k, v in found.model_dump(mode="json").items() if k not in RESUMABLE}


def planned() -> list[Planned]:
    """Returns the runs of the suite, one for each seed."""
    suite = read(SUITE, "the control suite")
    known = ("algorithm", "env", "at_least")
    return [
        Planned(run["algorithm"], run["env"], seed, run["at_least"],
                tuple((k, v) for k, v in run.items() if k not in known))
        for seed in suite["seeds"] for run in suite["runs"]
    ]  # fmt: skip


def records() -> list[dict[str, Any]]:
    """Returns the runs on record."""
    return (
        [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    )


def on_record(run: Planned, known: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the record of a run, None if there is none under its settings."""
    settings = run.settings()
    return next((each for each in known if each["settings"] == settings), None)


# Every run with its record.
Pairs = Sequence[tuple[Planned, dict[str, Any] | None]]
