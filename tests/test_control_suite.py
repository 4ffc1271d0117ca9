# SPDX-License-Identifier: Apache-2.0
"""What `make control` says of the runs on record."""

import sys

import pytest

pytest.importorskip("gymnasium")

from benchmarks import control, control_runs


@pytest.mark.parametrize("last,code", ((480.0, 0), (299.0, 1)))
def test_a_run_that_missed_its_return_is_named_and_fails(last, code, monkeypatch, capsys):
    run = next(x for x in control_runs.planned() if x.label == "dqn/CartPole-v1")
    record = {"return": last, "best_return": 500.0, "best_step": 30_000}
    monkeypatch.setattr(control, "planned", lambda: [run])
    monkeypatch.setattr(control, "on_record", lambda *_: record)
    monkeypatch.setattr(control.control_page, "write", lambda pairs: None)
    monkeypatch.setattr(sys, "argv", ["control"])
    assert control.main() == code
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 of 1 runs are on record"
    line = "MISSED dqn/CartPole-v1, seed 0: 299.0 (at least 475; at best 500.0 after 30,000 steps)"
    assert said[1:] == [line][:code]


def test_the_page_is_of_the_recipes_as_they_are():
    known, runs = control.records(), control.planned()
    changed = [f"{run.label}, seed {run.seed}" for run in runs if not control.on_record(run, known)]
    assert not changed, "a recipe is not the recorded one: `make control` runs it again"
    assert len(known) == len(runs), "runs on record that the suite has not"
