# SPDX-License-Identifier: Apache-2.0
"""No program of the benchmarks records rows of a forced backend as those of the machine."""

import argparse
import sys

import pytest

from benchmarks import beside_peers, end_to_end, memory, report

PROGRAMS = {
    beside_peers: ([], "measured"), memory: ([], "measured"),
    end_to_end: (["--cases", "generate"], "compared"),
}  # fmt: skip


@pytest.mark.parametrize("name", report.FORCED)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda x: x.__name__)
def test_a_forced_backend_is_refused_before_anything_is_measured(
    program, name, monkeypatch, capsys
):
    words, work = PROGRAMS[program]
    for each in report.FORCED:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "eager")
    monkeypatch.setattr(sys, "argv", [program.__name__, *words])
    monkeypatch.setattr(report, "refusal", lambda where: None)
    monkeypatch.setattr(program, work, lambda *_: pytest.fail("it was measured"))
    try:
        status = program.main()
    except SystemExit as error:
        status = error.code
    assert status and f"not recorded: {name} is set" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["5", "null", '["cpu"]', '{"cpu": "C"'])
def test_a_line_that_is_no_object_is_said_with_its_number(line, tmp_path):
    path = tmp_path / "cpu.jsonl"
    path.write_text(f"{{}}\n{line}\n")
    with pytest.raises(ValueError, match=r"cpu\.jsonl, line 2 must be a JSON object"):
        report.records(path)


def test_a_processor_whose_file_names_no_model_has_its_steps_recorded(monkeypatch):
    monkeypatch.setattr(end_to_end, "processor", lambda: "aarch64")
    given = argparse.Namespace(dtype="mixed", threads=2)
    assert end_to_end.record("wide", given, {})["cpu"] == "aarch64"
