# SPDX-License-Identifier: Apache-2.0
"""Two processes learn what one does, whatever the algorithm; none is named here."""

import os
from pathlib import Path

import pytest
from distributed_helpers import spawn
from scale_helpers import as_one_of_two, assert_same_curve, no_plot
from trainer_helpers import any_algorithm

from rlkern.algorithms import declarations
from rlkern.runs.logs import read_metrics
from rlkern.trainer import loop, train

CLIPS_AT_ONE = ("topr",)
ALGORITHMS, STEPS, PLACE = list(declarations()), 3, "EVERY_ALGORITHM"


def train_all(folder: Path, who: str) -> None:
    """Runs a few steps of every algorithm."""
    for name in ALGORITHMS:
        short = {"steps": STEPS, "eval__items": 20, "output__save_every": 0}
        train(any_algorithm(folder, name, **short, name=f"{name} of {who}"))


def in_every_process(rank: int) -> None:
    """Runs everything as one of two processes."""
    as_one_of_two(rank)
    train_all(Path(os.environ[PLACE]), "two")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns a folder with a run of every algorithm by one process and by two."""
    folder = tmp_path_factory.mktemp("every")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_curves", no_plot)
        patch.setenv(PLACE, str(folder))
        train_all(folder, "one")
        (folder / "ranks").mkdir()
        spawn(in_every_process, 2, folder / "ranks")
    return folder / "runs"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_processes_learn_what_one_does(runs, name):
    two, one = (read_metrics(runs / f"{name} of {who}") for who in ("two", "one"))
    declared, steps, but = declarations()[name], STEPS, ()
    # On policy log r is rounding, and the sampler's may be another one than the loss's: whether a
    # clip at ratio 1 holds a token, and which way the penalty |log r| pulls, is then chance.
    if getattr(declared, "gate", "") in CLIPS_AT_ONE:
        but = ("clip_ratio/",)
    if getattr(declared, "statistic_row", "") == "penalty":
        steps, but = 1, ("grad_norm",)
    assert_same_curve(two[: 1 + steps], one[: 1 + steps], steps, but)
