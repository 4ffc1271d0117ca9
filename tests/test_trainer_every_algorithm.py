# SPDX-License-Identifier: Apache-2.0
"""What every algorithm of the trainer must do, whatever it learns from; none is named here."""

import pytest
import torch
from trainer_helpers import (
    any_algorithm,
    changed,
    compiled,  # noqa: F401
    without_times,
)

from rlkern.algorithms import declarations
from rlkern.runs.logs import read_metrics
from rlkern.trainer import build, train

pytestmark = pytest.mark.usefixtures("compiled")

ALGORITHMS = declarations()
EVERY = pytest.mark.parametrize("name", list(ALGORITHMS))


@EVERY
def test_a_resumed_run_of_any_algorithm_is_the_uninterrupted_one(tmp_path, name):
    config = any_algorithm(tmp_path, name, steps=4, output__save_every=2, eval__items=20)
    whole, parts = (changed(config, name=x) for x in ("whole", "parts"))
    train(whole)
    torch.manual_seed(99)
    train(changed(parts, steps=2))
    torch.manual_seed(98)
    train(parts, resume=True)
    runs = [tmp_path / "runs" / part for part in ("whole", "parts")]
    lines = [without_times(read_metrics(run)) for run in runs]
    # The part that ends after two steps also evaluates there; all else is the same.
    kept = [[{k: x for k, x in line.items() if k[:5] != "eval/"} for line in run] for run in lines]
    assert kept[0] == kept[1]
    assert lines[0][-1] == lines[1][-1]
    weights = [(run / "checkpoint-4" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


@EVERY
def test_what_an_algorithm_learns_from_has_a_learner(name):
    declared = ALGORITHMS[name]
    assert declared.trains in build.LOADERS
    with_pairs = (declared.learns_from, declared.trains) in build.PREFERENCES
    assert with_pairs != (declared.learns_from in build.WITHOUT_PAIRS)
