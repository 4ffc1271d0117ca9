# SPDX-License-Identifier: Apache-2.0
"""What becomes a committed row, and what does not."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest
import torch

import rlkern
from benchmarks import bench_scans, drift, promises, report, run
from rlkern.testing.runs import RUNS

WHERE = {"cpu": "C", "threads": 2, "isa": "AVX512", "torch": "2", "commit": "abc"}


def rows_of(ours, theirs=6.0, spread=0.0):
    """Returns a group of two rows, each within its spread."""
    named = {"rlkern_value_loss": ours, "eager_value_loss": theirs}
    return {"value_loss x": {
        name: report.Timing(x, x - spread, x + spread, x) for name, x in named.items()
    }}  # fmt: skip


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Returns a run of `preference` whose processes measure what they are given, in turn; and where
    it records. On record ours takes a third of the other's time."""
    monkeypatch.setattr(run, "gate", lambda chosen: True)
    monkeypatch.setattr(run.report, "machine", lambda: WHERE)
    monkeypatch.setattr(run.report, "RESULTS", tmp_path)
    monkeypatch.setattr(run.report, "committed", lambda path: [WHERE | {
        "group": group, "ms": {name: list(t) for name, t in rows.items()}
    } for group, rows in rows_of(2.0, spread=0.1).items()])  # fmt: skip
    monkeypatch.setattr(run.readme, "write", lambda: None)
    for name in report.FORCED:
        monkeypatch.delenv(name, raising=False)

    def start(*measured, words=("preference",)):
        turns = list(measured)
        monkeypatch.setattr(run, "timed", lambda *_, **__: turns.pop(0))
        return run.main(list(words)), len(turns)

    return start, tmp_path / "cpu.jsonl"


def test_a_ratio_that_no_bound_is_set_for_falls_and_is_not_recorded(bench, capsys):
    start, path = bench
    assert start(*[rows_of(4.0)] * 3) == (1, 0)  # timed again twice
    said = capsys.readouterr()
    assert "eager_value_loss / rlkern_value_loss = 1.5 (1.5–1.5), on record 3 (" in said.out
    assert "not recorded, since they fell: value_loss x\n" in said.err
    assert report.records(path) == []


def test_beside_a_group_that_fell_the_others_are_recorded(bench):
    start, path = bench
    both = {**rows_of(4.0), "value_loss y": rows_of(2.0)["value_loss x"]}
    assert start(*[both] * 3) == (1, 0)
    assert [line["group"] for line in report.records(path)] == ["value_loss y"]


@pytest.mark.parametrize("theirs,fell", ((0.009, False), (0.011, True)))
def test_what_ends_in_microseconds_is_no_yardstick(theirs, fell):
    now, before = rows_of(1.0, theirs), rows_of(0.5, theirs)
    assert bool(promises.fallen(now, before)) == fell


def test_what_one_process_saw_alone_has_not_fallen(bench, capsys):
    start, path = bench
    assert start(rows_of(4.0), rows_of(2.0), rows_of(9.0)) == (0, 1)
    assert "timed again: preference" in capsys.readouterr().out
    (line,) = report.records(path)
    assert line["ms"]["rlkern_value_loss"] == [3.0, 2.0, 4.0, 2.0, 0.0]  # the spread is of both


@pytest.mark.parametrize("stem", run.stems())
@pytest.mark.parametrize("red", (None, "conformance", *sum(run.TESTS.values(), ())))
def test_nothing_is_timed_whose_own_tests_are_red(stem, red, monkeypatch):
    seen = []

    def pytest_of(*options):
        names = [Path(x).stem.removeprefix("test_") for x in options if x.endswith(".py")]
        assert all((run.FOLDER.parent / f"tests/test_{name}.py").is_file() for name in names)
        seen.extend(names)
        return int(red in names)

    monkeypatch.setattr(run, "pytest", pytest_of)
    asked = {"conformance", *run.TESTS.get(stem, ())}
    assert run.gate([stem]) == (red not in asked)
    assert red is not None or set(seen) == asked


def test_what_the_conformance_test_does_not_compare_has_tests_of_its_own():
    timed = {
        "calls": "td_loss", "groups": "refill_index", "preference": "preference_loss",
        "linear_policy_loss": "linear_policy_loss",
    }  # fmt: skip
    for stem, operation in timed.items():
        assert operation not in RUNS
        files = [run.FOLDER.parent / f"tests/test_{name}.py" for name in run.TESTS[stem]]
        assert any(operation in path.read_text() for path in files)


def test_a_quick_run_takes_one_size_of_each_and_leaves_no_row(bench, monkeypatch):
    start, path = bench
    assert start(rows_of(9.0), words=("preference", "--quick")) == (0, 0) and not path.exists()
    assert run.QUICK.keys() == set(run.stems())
    with pytest.raises(SystemExit):
        run.main(["nosuch"])


@pytest.mark.parametrize("name", report.FORCED)
def test_rows_of_a_backend_that_was_forced_are_not_those_of_the_machine(
    bench, monkeypatch, capsys, name
):
    start, path = bench
    monkeypatch.setenv(name, "1")
    assert start(rows_of(9.0)) == (0, 0) and not path.exists()
    assert f"{name} is set, so nothing of this run is recorded" in capsys.readouterr().out


def test_words_that_pick_no_benchmark_are_an_error(bench, capsys):
    start, _ = bench
    assert start({}, words=("preference", "--select", "nosuch")) == (1, 0)
    assert "nothing was timed: --select 'nosuch' picks none" in capsys.readouterr().err
    assert start(rows_of(2.0), words=("preference", "--select", "x")) == (0, 0)


def test_a_row_that_is_no_longer_timed_is_said_and_fails_a_run_of_everything(
    bench, monkeypatch, capsys
):
    start, path = bench
    fewer = {group: {"rlkern_value_loss": x["rlkern_value_loss"]}
             for group, x in rows_of(9.0).items()}  # fmt: skip
    assert start(fewer) == (0, 0) and len(report.records(path)) == 1
    assert "GONE            value_loss x: eager_value_loss\n" in capsys.readouterr().out
    monkeypatch.setattr(run, "stems", lambda: ["preference"])
    before = report.records(path)
    both = {**fewer, "value_loss y": rows_of(2.0)["value_loss x"]}
    assert start(both, words=()) == (1, 0)
    assert [x["group"] for x in report.records(path)] == ["value_loss x", "value_loss y"]
    assert report.records(path)[:1] == before  # what is gone is not replaced by less
    assert "not recorded, since rows are gone: value_loss x\n" in capsys.readouterr().err


def test_a_second_timing_that_fails_is_said(bench, capsys):
    start, path = bench
    assert start(rows_of(4.0), None, None) == (1, 0) and not path.exists()
    said = capsys.readouterr()
    assert said.err.count("FAILED when it was timed again: preference\n") == 2
    assert "FELL            value_loss x: " in said.out


def test_small_falls_are_held_to_the_best_committed_run(bench, monkeypatch, tmp_path, capsys):
    start, path = bench
    monkeypatch.setattr(report, "git", git_in(tmp_path))
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    path = tmp_path / "results/cpu.jsonl"
    path.parent.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    who = ("-c", "user.name=x", "-c", "user.email=x@y.z")
    for ours in (1.0, 1.8, 2.1):  # on record is 2.0
        path.write_text(json.dumps({"of an older": "form"}) + "\nno JSON\n")
        line = WHERE | {"group": "value_loss x", "ms": rows_of(ours, spread=0.1)["value_loss x"]}
        path.open("a").write(json.dumps(line) + "\n")
        for words in (("add", "."), (*who, "commit", "-qm", "x")):
            subprocess.run(["git", *words], cwd=tmp_path, check=True)
    path.unlink()
    assert len(drift.past(path, WHERE)) == 3
    assert start(rows_of(2.1, spread=0.1)) == (0, 0)
    worse = "rlkern_value_loss = 2.86 (2.68–3.05), at best 6 (5.36–6.78)\n"
    assert f"DRIFTED         value_loss x: eager_value_loss / {worse}" in capsys.readouterr().out
    assert drift.past(path, WHERE | {"cpu": "another"}) == [{}, {}, {}]


def test_a_fall_that_the_spread_of_the_run_hides_is_in_doubt(bench, capsys):
    start, path = bench
    assert start(rows_of(4.0, spread=2.5)) == (0, 0) and len(report.records(path)) == 1
    ratio = "eager_value_loss / rlkern_value_loss = 1.5 (0.538–5.67), on record 3 (2.81–3.21)\n"
    assert f"IN DOUBT        value_loss x: {ratio}" in capsys.readouterr().out
    assert start(rows_of(2.1, spread=2.0)) == (0, 0)
    assert "IN DOUBT" not in capsys.readouterr().out


def test_a_file_that_was_cut_off_is_said_before_anything_is_timed(bench, capsys):
    start, path = bench
    path.write_text('{"group": "g", "m')
    assert start(rows_of(2.0)) == (1, 1)
    assert 'cpu.jsonl, line 1 must be a JSON object, got \'{"group"' in capsys.readouterr().err
    assert path.read_text() == '{"group": "g", "m'


def test_the_median_of_processes_does_not_depend_on_their_order(bench):
    start, path = bench
    found = set()
    for order in ((1.0, 2.0, 9.0), (9.0, 2.0, 1.0), (1.0, 9.0, 2.0)):
        assert start(*map(rows_of, order), words=("preference", "--processes", "3"))[1] == 0
        found.add(tuple(report.records(path)[0]["ms"]["rlkern_value_loss"]))
    assert found == {(2.0, 1.0, 9.0, 1.0, 0.0)}


def test_a_tree_that_git_does_not_know_is_not_recorded(bench, monkeypatch, capsys):
    start, path = bench
    monkeypatch.setattr(run.report, "machine", lambda: WHERE | {"commit": ""})
    assert start(rows_of(2.0)) == (1, 0) and not path.exists()
    assert "not recorded: git knows of no commit here" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert report.git("describe", "--always") == ""


def test_rows_of_several_processes_are_joined(bench):
    start, path = bench
    assert start(rows_of(1.0), rows_of(2.0), words=("preference", "--processes", "2")) == (0, 0)
    assert report.records(path)[0]["ms"]["rlkern_value_loss"] == [1.5, 1.0, 2.0, 1.0, 0.0]


def test_a_run_of_a_tree_with_changes_says_so_first_and_fails(bench, monkeypatch, capsys):
    start, path = bench
    monkeypatch.setattr(run.report, "machine", lambda: WHERE | {"commit": "abc-dirty"})
    assert start(rows_of(2.0)) == (1, 0) and not path.exists()
    said = capsys.readouterr()
    assert said.out.startswith("nothing of this run will be recorded: commit the changes first")
    assert "commit the changes first" in said.err


def test_the_record_is_what_is_committed_and_its_own_files_do_not_make_a_tree_dirty(
    tmp_path, monkeypatch
):
    results = tmp_path / "benchmarks/results"
    results.mkdir(parents=True)
    monkeypatch.setattr(report, "RESULTS", results)
    monkeypatch.setattr(report, "git", git_in(results.parent))
    path, code = results / "cpu.jsonl", results.parent / "x.py"
    line = WHERE | {"group": "committed", "left_out": "slow"}
    path.write_text(json.dumps(line) + "\n")
    code.write_text("")
    assert report.committed(path) == [line]  # no repository: the file
    who = ("-c", "user.name=x", "-c", "user.email=x@y.z")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    path.write_text('{"group": "of the run before"}\n')
    assert report.committed(path) == [line]
    assert report.committed(results / "new.jsonl") == []
    assert not str(report.machine()["commit"]).endswith("-dirty")
    (results.parent / "bench_new.py").write_text("")  # no commit has it, and it would be timed
    assert str(report.machine()["commit"]).endswith("-dirty")
    (results.parent / "bench_new.py").unlink()
    assert not str(report.machine()["commit"]).endswith("-dirty")
    code.write_text("changed")
    assert str(report.machine()["commit"]).endswith("-dirty")


def git_in(folder):
    def git(*words):
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    return git


@pytest.mark.parametrize("stem", run.stems())
def test_every_file_looks_at_the_results_that_it_times(stem):
    module = importlib.import_module(f"benchmarks.bench_{stem}")
    checks = [x for x in vars(module) if x.startswith("test_") and x.endswith("_right")]
    assert checks


def test_what_is_wrong_at_the_size_that_is_timed_fails_the_run(monkeypatch):
    gae = rlkern.gae
    rows = torch.randn(2, 8, 16)
    values = ("8x16", *rows, torch.ones(8, 16, dtype=torch.bool))
    bench_scans.test_what_is_timed_is_right(values)

    def off(*rows, **options):
        advantage, target = gae(*rows, **options)
        return advantage, target + 0.01

    monkeypatch.setattr(rlkern, "gae", off)
    with pytest.raises(AssertionError, match="not close"):
        bench_scans.test_what_is_timed_is_right(values)


def test_a_file_that_fails_fails_the_run(bench, capsys):
    start, path = bench
    assert start(None) == (1, 0) and not path.exists()
    assert "FAILED, so not timed: preference" in capsys.readouterr().err
