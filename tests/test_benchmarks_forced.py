# SPDX-License-Identifier: Apache-2.0
"""What a program of the benchmarks refuses, and how it says what went wrong."""

import argparse
import importlib
import json
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("triton")  # benchmarks.instructions compiles with it

from benchmarks import (  # noqa: E402
    beside_peers,
    end_to_end,
    fields,
    instructions,
    memory,
    page,
    processes,
    readme,
    report,
    steps,
)

WHERE = {"cpu": "C", "threads": 2, "isa": "AVX512", "torch": "2", "commit": "abc"}
PROGRAMS = {
    beside_peers: ([], "measured"), memory: ([], "measured"),
    end_to_end: (["--cases", "generate"], "compared"),
}  # fmt: skip


@pytest.mark.parametrize("why", (*report.FORCED, "the tree is abc-dirty"))
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda x: x.__name__)
def test_what_cannot_be_recorded_is_refused_before_anything_is_measured(
    program, why, monkeypatch, capsys
):
    words, work = PROGRAMS[program]
    for each in report.FORCED:
        monkeypatch.delenv(each, raising=False)
    if why in report.FORCED:
        monkeypatch.setenv(why, "eager")
    commit = "abc" if why in report.FORCED else "abc-dirty"
    monkeypatch.setattr(report, "machine", lambda: {"commit": commit})
    monkeypatch.setattr(sys, "argv", [program.__name__, *words])
    monkeypatch.setattr(program, work, lambda *_: pytest.fail("it was measured"))
    assert program.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("not recorded: ") and why in said


def test_memory_is_written_whole_or_not_at_all(monkeypatch, tmp_path, capsys):
    path = tmp_path / memory.MEMORY
    path.write_text("of the run before")
    for each in report.FORCED:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setattr(report, "machine", lambda: {"commit": "abc"})
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(memory.readme, "write", lambda: None)
    monkeypatch.setattr(memory, "measured", lambda *_: {"row": "x"})
    monkeypatch.setattr(sys, "argv", ["memory"])

    def full(descriptor):
        raise OSError("the disk is full")

    with monkeypatch.context() as context, pytest.raises(OSError):
        context.setattr("os.fsync", full)
        memory.main()
    assert path.read_text() == "of the run before"
    assert memory.main() == 0 and path.read_text().count("abc") == 10


@pytest.mark.parametrize("code, why", (
    ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL: it said nothing"),
    ("import sys; sys.exit('no room')", "ended with exit status 1: no room"),
    ("import sys; print('', file=sys.stderr)", "must print a line of JSON last, got '': it said"),
    ("print('[1'); print('half')", r"must print a line of JSON last, got '[1\nhalf'"),
))  # fmt: skip
def test_a_process_without_a_result_is_a_sentence(code, why):
    with pytest.raises(RuntimeError, match=re.escape(why)):
        processes.said([sys.executable, "-c", code])


def test_a_process_reads_its_job_and_its_last_line_counts():
    code = "import os; print('noise'); print('[' + input() + ', ' + os.environ['X'] + ']')"
    assert processes.said([sys.executable, "-c", code], "3", {"X": "4"}) == [3, 4]


RECORDED = [*fields.FORMS, "nvidia_h200.jsonl"]


@pytest.mark.parametrize("line", ["5", "null", '["cpu"]', '{"cpu": "C"'])
def test_a_line_that_is_no_object_is_said_with_its_number(line, tmp_path):
    path = tmp_path / "cpu.jsonl"
    first = (report.RESULTS / "cpu.jsonl").read_text().split("\n")[0]
    path.write_text(f"{first}\n{line}\n")
    with pytest.raises(ValueError, match=r"cpu\.jsonl, line 2 must be a JSON object"):
        report.records(path)


@pytest.mark.parametrize("name", RECORDED)
def test_a_broken_line_of_any_file_is_a_sentence_and_no_page(name, tmp_path):
    path, known = tmp_path / name, report.records(report.RESULTS / name)
    form = fields.FORMS.get(name, fields.GPU)
    needed = [*form.always, *(field for field in form.either if field in known[0])]
    broken = [{}, *({k: v for k, v in known[0].items() if k != field} for field in needed)]
    broken += [{**known[0], field: x} for field in needed for x in (None, [], {"a": "b"}, True)]
    for line in broken:
        path.write_text("".join(json.dumps(x) + "\n" for x in (known[0], line)))
        with pytest.raises(ValueError, match=f"{name}, line 2 must have '?[a-zA-Z]"):
            report.records(path)
    path.write_text("")
    with pytest.raises(ValueError, match=f"{name} must have a line at least, got an empty file"):
        readme.short(tmp_path), page.numbers(tmp_path), instructions.committed(path)


def test_peers_without_a_row_of_ours_are_a_sentence(tmp_path):
    rows = [x for x in report.records(report.RESULTS / beside_peers.PEERS) if x["row"] != "rlkern"]
    report.write(rows, tmp_path / beside_peers.PEERS)
    with pytest.raises(ValueError, match=f"{beside_peers.PEERS} must have a row of rlkern for "):
        page.numbers(tmp_path)


def test_the_page_knows_every_case_and_every_file():
    assert list(beside_peers.WORK) == list(beside_peers.SIZES) == list(fields.OPERATIONS)
    assert list(steps.GOALS) == list(fields.CASES) == list(end_to_end.WORK)
    assert {page.CPU, page.STEPS, page.MEMORY, beside_peers.PEERS} < fields.FORMS.keys()
    assert [path.name for path in page.gpu_files(report.RESULTS)] == ["nvidia_h200.jsonl"]


def test_a_processor_whose_file_names_no_model_has_its_steps_recorded(monkeypatch):
    monkeypatch.setattr(end_to_end, "processor", lambda: "aarch64")
    given = argparse.Namespace(dtype="mixed", threads=2)
    assert end_to_end.record("wide", given, {})["cpu"] == "aarch64"


@pytest.mark.parametrize("python, why", (
    ("/nosuch/python", r"/nosuch/python \(No such file or directory\)"),
    (".", r"\. \(Permission denied\)"),
    ("false", r"false \(exit status 1\)"),
))  # fmt: skip
def test_a_peer_that_cannot_run_trl_is_said_before_anything_is_measured(
    python, why, monkeypatch, capsys
):
    monkeypatch.setattr(end_to_end, "compared", lambda *_: pytest.fail("it was measured"))
    monkeypatch.setattr("sys.argv", ["end_to_end", "--cases", "wide", "--peer", python])
    with pytest.raises(SystemExit, match="2"):
        end_to_end.main()
    assert re.search(f"an environment that has TRL, got {why}", capsys.readouterr().err)


def test_a_side_that_fails_is_said_in_its_own_words(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("python: out of memory")

    monkeypatch.setattr(end_to_end, "child", fail)
    monkeypatch.setattr(end_to_end, "job_of", lambda *_: {})
    monkeypatch.setattr("sys.argv", ["end_to_end", "--cases", "generate", "--dry"])
    assert end_to_end.main() == 1
    assert capsys.readouterr().err == "generate: python: out of memory\n"


def test_peers_that_are_not_installed_are_said_before_anything_is_measured(
    monkeypatch, tmp_path, capsys
):
    path = tmp_path / beside_peers.PEERS
    for name in report.FORCED:
        monkeypatch.delenv(name, raising=False)
    known = WHERE | {"op": "gae", "size": "4", "row": "verl f", "ms": [1.0] * 4}
    path.write_text(json.dumps(known) + "\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "machine", lambda: WHERE)
    monkeypatch.setattr(beside_peers.cpu_peers, "gae", lambda steps: {"verl": failing_import})
    monkeypatch.setattr(beside_peers, "measured", lambda *_: pytest.fail("it was measured"))
    monkeypatch.setattr("sys.argv", ["beside_peers", "gae"])
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")  # main sets it; undone here
    assert beside_peers.main() == 1 and report.records(path) == [known]
    assert "verl cannot be imported here and is on record" in capsys.readouterr().err
    path.unlink()
    rows = [{"op": "gae", "size": "4", "row": "rlkern", "ms": [1.0] * 4}]
    monkeypatch.setattr(beside_peers, "measured", lambda *_: (rows, True))
    assert beside_peers.main() == 0 and len(report.records(path)) == 1


def failing_import():
    raise ImportError("no")


def test_steps_of_a_tree_with_changes_are_not_recorded(monkeypatch, tmp_path, capsys):
    line = {"case": "generate", "rlkern": {}, "ratio": 1.0}
    for name in report.FORCED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(end_to_end, "RECORDS", tmp_path / "records.jsonl")
    monkeypatch.setattr(end_to_end, "compared", lambda case, given: line)
    monkeypatch.setattr("sys.argv", ["end_to_end", "--cases", "generate"])
    for commit, code in (("abc-dirty", 1), ("abc", 0)):
        monkeypatch.setattr(end_to_end.report, "machine", lambda found=commit: {"commit": found})
        assert end_to_end.main() == code
        assert (tmp_path / "records.jsonl").exists() == (code == 0)
    said = capsys.readouterr()
    assert "commit the changes first (the tree is abc-dirty), or ask for --dry" in said.err
    assert said.out.count("ratio") == 1, "hours are not spent on what is not recorded"


def programs():
    """Returns the modules that can be run; TRL's environment has neither rlkern nor a command
    line for its side."""
    files = Path(report.__file__).parent.glob("*.py")
    found = {x.stem for x in files if '__name__ == "__main__"' in x.read_text(encoding="utf-8")}
    return sorted(found - {"end_to_end_trl"})


@pytest.mark.parametrize("name", programs())
def test_a_program_refuses_words_that_it_does_not_know(name, monkeypatch, capsys):
    monkeypatch.setattr(readme, "write", lambda: pytest.fail("it wrote"))
    monkeypatch.setattr(sys, "argv", [name, "--nosuch"])
    program = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert "unrecognized arguments: --nosuch" in capsys.readouterr().err


def test_a_program_that_is_stopped_says_so_in_a_line():
    code = """
        import signal, sys, time
        from benchmarks import memory, processes
        # A shell that starts tests in the background has them ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def measured(*case):
            print("it measures", flush=True)
            time.sleep(60)
        memory.measured, sys.argv = measured, ["memory", "--small"]
        raise SystemExit(processes.stoppable(memory.main))
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(
        words, cwd=processes.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout.readline() == "it measures\n"
        program.send_signal(signal.SIGINT)
        assert program.wait(30) == 130
        assert program.stderr.read().startswith("stopped: ")


@pytest.mark.parametrize("name", sorted({*programs()} - {"passes", "readme", "report", "trace"}))
def test_every_program_that_takes_minutes_can_be_stopped(name):
    text = (Path(report.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    assert text.endswith("    raise SystemExit(processes.stoppable(main))\n")
