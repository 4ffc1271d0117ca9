# SPDX-License-Identifier: Apache-2.0
"""What becomes a committed row, and what does not."""

import pytest

from benchmarks import end_to_end, report, run


def test_what_has_fallen_is_not_recorded_so_the_next_run_sees_it_too(monkeypatch, capsys):
    one = {"calls x": {"rlkern": report.Timing(1.0, 1.0, 1.0, 1.0)}}
    monkeypatch.setattr(run, "gate", lambda: True)
    monkeypatch.setattr(run, "timed", lambda stem, select, **_: one)
    monkeypatch.setattr(run.promises, "fallen", lambda *_: ["FELL x"])
    monkeypatch.setattr(run.report, "record", lambda *_, **__: pytest.fail("recorded"))
    monkeypatch.setattr(run.readme, "write", lambda: pytest.fail("written"))
    monkeypatch.delenv("RLKERN_BENCH_SMOKE", raising=False)
    monkeypatch.setattr("sys.argv", ["run", "calls"])
    assert run.main() == 1
    said = capsys.readouterr()
    assert "FELL x" in said.out and "what has fallen would be the record" in said.err


def test_steps_of_a_tree_with_changes_are_not_recorded(monkeypatch, tmp_path, capsys):
    line = {"case": "generate", "rlkern": {}, "ratio": 1.0}
    monkeypatch.setattr(end_to_end, "RECORDS", tmp_path / "records.jsonl")
    monkeypatch.setattr(end_to_end, "compared", lambda case, given: line)
    monkeypatch.setattr("sys.argv", ["end_to_end", "--cases", "generate"])
    for commit, code in (("abc-dirty", 1), ("abc", 0)):
        monkeypatch.setattr(end_to_end.report, "machine", lambda found=commit: {"commit": found})
        assert end_to_end.main() == code
        assert (tmp_path / "records.jsonl").exists() == (code == 0)
    assert "commit the changes first (abc-dirty)" in capsys.readouterr().err
