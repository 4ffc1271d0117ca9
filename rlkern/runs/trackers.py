# SPDX-License-Identifier: Apache-2.0
"""Trackers of experiments: each gets the metrics that metrics.jsonl gets, and none is asked to
leave the machine.

After a resume TensorBoard forgets what lies past the checkpoint. The others cannot, so they get
these steps a second time.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rlkern.runs.errors import UserError

# What runs are gathered under where a tracker has such a thing.
PROJECT = "rlkern"


class Start(NamedTuple):
    """What a tracker is told of a run: its folder, the step that it goes on after (-1 or 0 for a
    fresh one), and its settings by dotted key."""

    run: Path
    step: int
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """Takes the metrics of steps."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Takes the metrics of a step."""

    def flush(self) -> None:
        """Brings what was taken to where others read it."""

    def close(self) -> None:
        """Ends the tracking of the run."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run."""

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = start.step + 1 if start.step else None
        self._board = SummaryWriter(str(start.run / "tensorboard"), purge_step=purge)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Takes the metrics of a step."""
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def flush(self) -> None:
        """Brings the event file up to date."""
        self._board.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._board.close()


class Trackio:
    """A project of trackio in its local database (TRACKIO_DIR)."""

    def __init__(self, start: Start) -> None:
        import trackio

        self._run = trackio.init(
            project=PROJECT, name=start.run.name, config=dict(start.settings), resume="allow"
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Takes the finite metrics of a step."""
        self._run.log(_finite(values), step=step)

    def flush(self) -> None:
        """Does nothing: it writes by itself."""

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class Wandb:
    """A run of Weights & Biases in the folder `wandb` of the run, which `wandb sync` uploads."""

    def __init__(self, start: Start) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=start.run.name,
            id=_noted(start, "wandb"),
            resume="allow",
            dir=str(start.run),
            config=dict(start.settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
        _note(start, "wandb", self._run.id)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Takes the finite metrics of a step."""
        self._run.log(_finite(values), step=step)

    def flush(self) -> None:
        """Does nothing: it writes by itself."""

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class Mlflow:
    """A run of MLflow where MLFLOW_TRACKING_URI says; without it MLflow's own local store."""

    def __init__(self, start: Start) -> None:
        import mlflow

        self._mlflow, known = mlflow, _noted(start, "mlflow")
        mlflow.set_experiment(PROJECT)
        if known is not None:
            mlflow.start_run(run_id=known)
            return
        begun = mlflow.start_run(run_name=start.run.name)
        _note(start, "mlflow", begun.info.run_id)
        mlflow.log_params({key: str(value) for key, value in start.settings.items()})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Takes the finite metrics of a step; pass@4 is called pass_at_4, since MLflow takes no @
        in a name."""
        finite = {key.replace("@", "_at_"): value for key, value in _finite(values).items()}
        self._mlflow.log_metrics(finite, step=step)

    def flush(self) -> None:
        """Does nothing: it writes at once."""

    def close(self) -> None:
        """Ends the run."""
        self._mlflow.end_run()


def _noted(start: Start, tracker: str) -> str | None:
    """Returns what a tracker called this run before a resume, None for a fresh run."""
    file = start.run / f".{tracker}-id"
    return file.read_text().strip() if start.step > 0 and file.is_file() else None


def _note(start: Start, tracker: str, name: str) -> None:
    (start.run / f".{tracker}-id").write_text(f"{name}\n")


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}


TRACKERS: dict[str, Callable[[Start], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def check_trackers(names: Sequence[str], key: str) -> None:
    """Raises UserError for a tracker of a key whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"{key} {name} needs the package {name}, which is not installed: pip install {name}"
            )


def begin_tracking(names: Sequence[str], start: Start, key: str) -> list[Tracker]:
    """Returns the trackers of a run, each told of it; Raises UserError, which names it and the key
    that asked for it, if one cannot begin."""
    found: list[Tracker] = []
    for name in names:
        try:
            found.append(TRACKERS[name](start))
        except Exception as error:  # each raises what it likes
            for other in found:
                other.close()
            first = str(error).strip().split("\n")[0]
            raise UserError(
                f"{key} {name} cannot begin: {type(error).__name__}: {first}"
            ) from error
    return found
