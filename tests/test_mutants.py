# SPDX-License-Identifier: Apache-2.0
"""The tool behind `make mutants`, on a toy project: what is planted, and who notices it."""

import doctest
import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from mutants import covering, plant, process, run, tool
from mutants.tool import Place, Results, sample, table

TOY = '''"""Words."""
LIMIT = 3


def clipped(x, low=0, high=LIMIT):
    """Returns x within its bounds."""
    if low > high:
        raise ValueError(f"low is {low + 1}")
    return max(low, min(x, high))


def unseen(x):
    return x + 1
'''
TESTS = """
import pytest
from rlkern import toy
from rlkern.toy import clipped

def test_bounds():
    assert [clipped(x) for x in (-1, 2, 5)] == [0, 2, 3]

def test_another_bound():
    assert clipped(5, high=4) == 4

def test_the_limit():
    assert toy.LIMIT == 3
"""

# Two tests share half a second, a third has no part in it.
SHARED = """
import time
import pytest

@pytest.fixture(scope="module")
def made():
    time.sleep(0.5)

def test_apart():
    pass

def test_first(made):
    pass

def test_second(made):
    pass
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> covering.Record:
    """Returns the record of a project of one module and two tests."""
    pytest.importorskip("coverage")
    tree = tmp_path_factory.mktemp("toy")
    for name, text in {"rlkern/__init__.py": "", "rlkern/toy.py": TOY, "tests/test_toy.py": TESTS,
                       "tests/test_shared.py": SHARED,
                       "tests/test_broken.py": "assert False\n"}.items():  # fmt: skip
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(text)
    (tree / "tests/mutants").symlink_to(Path(plant.__file__).parent)
    record = covering.Record(tree / "record", tree)
    for name in ("tests/test_toy.py", "tests/test_shared.py", "tests/test_broken.py"):
        assert not record.is_fresh(name)
        assert elsewhere(record.record, name, 600)
        assert record.is_fresh(name)
    return record


def elsewhere(call, *arguments):
    """Returns what a call returns in a process that has not imported rlkern."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


@pytest.mark.parametrize("module", (plant, covering, run, tool))
def test_the_examples_of_a_module_hold(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_a_line_is_covered_by_the_tests_that_execute_it(toy):
    files = ["tests/test_toy.py", "tests/test_broken.py"]
    both = {f"tests/test_toy.py::test_{name}" for name in ("bounds", "another_bound")}

    def tests(text):
        number = TOY.splitlines().index(text) + 1
        return set(covering.tests_of(toy, files, "rlkern/toy.py", number))

    assert tests("    return max(low, min(x, high))") == both
    assert tests("def clipped(x, low=0, high=LIMIT):") == both  # by what it is a default of
    table = {"tests/test_toy.py::test_the_limit"}  # which executes nothing of the source
    assert tests("    return x + 1") == tests("LIMIT = 3") == both | table


def test_what_tests_share_takes_each_of_them_as_long(toy):
    seconds = toy.seconds("tests/test_shared.py")
    apart, first, second = seconds.values()
    assert first - apart > 0.25 and second - apart > 0.25


def test_what_tests_share_is_counted_once(monkeypatch, toy):
    seconds = toy.seconds("tests/test_shared.py")
    monkeypatch.setattr(tool, "tests_of", lambda *_: dict(sorted(seconds.items())))
    place = Place("rlkern/toy.py", next(plant.mutants(TOY)))
    chosen = tool._selected(toy, [], place, 0.9)
    assert list(chosen) == list(seconds)  # twice the half second would not fit
    assert len(tool._selected(toy, [], place, 0.01)) == 1


def test_lines_that_moved_are_still_covered(toy):
    file = toy.tree / "rlkern/toy.py"
    covering.Record.lines.cache_clear()
    file.write_text("# one more line\n" + TOY)
    try:
        number = TOY.splitlines().index("    if low > high:") + 2
        assert toy.lines("tests/test_toy.py", "rlkern/toy.py")[number]
    finally:
        file.write_text(TOY)
        covering.Record.lines.cache_clear()


def test_a_source_that_moved_is_still_covered(toy):
    moved = toy.tree / "rlkern/moved.py"
    moved.write_text(TOY.replace('"""Words."""', '"""Other words."""'))
    try:
        number = TOY.splitlines().index("    if low > high:") + 1
        assert toy.lines("tests/test_toy.py", "rlkern/moved.py")[number]
    finally:
        moved.unlink()


def outcome_of(toy, what: str) -> run.Outcome:
    mutant = next(m for m in plant.mutants(TOY) if m.what == what)
    tests = covering.tests_of(toy, ["tests/test_toy.py"], "rlkern/toy.py", mutant.line)
    return elsewhere(run.tried, toy.tree, "rlkern/toy.py", mutant, tests)


def test_a_fault_that_a_test_notices_is_killed_by_it(toy):
    outcome = outcome_of(toy, "max → min")
    assert outcome.killed and outcome.by.startswith("tests/test_toy.py::test_")
    assert (toy.tree / "rlkern/toy.py").read_text() == TOY


def test_a_fault_that_no_test_notices_lives(toy):
    assert not outcome_of(toy, "low > high → low >= high").killed


def test_a_fault_that_breaks_the_import_is_killed(toy):
    mutant = plant.Mutant(2, (0, 0), "typo", "", "1 / 0\n")
    tests = {"tests/test_toy.py::test_bounds": 1.0}
    outcome = elsewhere(run.tried, toy.tree, "rlkern/toy.py", mutant, tests)
    assert outcome.killed and "import" in outcome.by


def with_a_handler(*arguments) -> int:
    """Returns what process.forked does in a process with a handler, as the tool's have."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return process.forked(*arguments)


def started_process() -> int:
    """Returns the exit code of a process that does nothing, more if there is a handler."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return 3
    started = multiprocessing.get_context("spawn").Process(target=len, args=((),))
    started.start()
    started.join()
    return started.exitcode


def test_a_test_may_start_processes_and_has_nobodys_handler(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        asked = (tmp_path, started_process, tmp_path / "log", 60)
        assert pool.apply(with_a_handler, asked) == 0, (tmp_path / "log").read_text()


def test_a_package_whose_name_is_that_of_written_files_is_in_the_copy(tmp_path):
    root, tree = tmp_path / "root", tmp_path / "tree"
    for name in ("runs/a/model", "build/x.o", "rlkern/runs/folder.py", "rlkern/__pycache__/x.pyc"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    run.copied(root, tree)
    assert [x for x in tree.rglob("*") if x.is_file()] == [tree / "rlkern/runs/folder.py"]


def test_a_sample_depends_on_the_seed_only_and_grows_at_its_end(toy):
    few, more = (sample(toy.tree, ["rlkern"], n, seed=1) for n in (3, 6))
    assert few == more[:3] and len(set(more)) == 6
    assert sample(toy.tree, ["rlkern"], 6, seed=2) != more
    assert {x.path for x in sample(toy.tree, ["rlkern"], 99, seed=0)} == {"rlkern/toy.py"}


def test_what_is_drawn_of_a_source_does_not_depend_on_the_others(tmp_path):
    def drawn() -> list[str]:
        places = sample(tmp_path, ["a.py", "b.py"], 99, seed=0)
        return [x.mutant.what for x in places if x.path == "b.py"]

    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("x = 1 + 2\ny = 1 - z\nw = not x\n")
    before = drawn()
    (tmp_path / "a.py").write_text("v = 5 < 6\nx = 1\n")
    assert drawn() == before and len(before) == 6


def test_a_table_is_tried_first_by_the_tests_that_bear_its_name(monkeypatch, toy):
    named, other = "tests/test_toy.py::test_all[cpu-toy]", "tests/test_toy.py::test_all[cpu-toyish]"
    seconds = {other: 0.1, named: 3.0}
    monkeypatch.setattr(toy, "seconds", lambda name: seconds)
    line = TOY.splitlines().index("LIMIT = 3") + 1
    assert next(iter(covering.tests_of(toy, ["tests/test_toy.py"], "rlkern/toy.py", line))) == named


def test_a_fault_is_tried_first_by_the_files_that_name_what_its_line_names(toy):
    files = ("tests/test_toy.py", "tests/test_shared.py")
    line = TOY.splitlines().index("def clipped(x, low=0, high=LIMIT):") + 1
    covering._words.cache_clear()
    assert covering.naming(toy.tree, files, "rlkern/toy.py", line) == {"tests/test_toy.py"}
    unseen = TOY.splitlines().index("def unseen(x):") + 1
    assert covering.naming(toy.tree, files, "rlkern/toy.py", unseen) == set()


def test_a_default_is_tried_first_by_what_only_looks_at_defaults(monkeypatch, toy):
    files = ["tests/test_shared.py", "tests/test_toy.py"]
    monkeypatch.setattr(covering, "LOOKING", ("tests/test_shared.py",))
    monkeypatch.setattr(covering, "naming", lambda *_: set())

    def first(text):
        line = TOY.splitlines().index(text) + 1
        return next(iter(covering.tests_of(toy, files, "rlkern/toy.py", line))).split("::")[0]

    assert first("LIMIT = 3") == "tests/test_shared.py"
    assert first("    return max(low, min(x, high))") == "tests/test_toy.py"


def test_results_are_remembered_and_the_living_are_tried_again_with_other_tests(tmp_path):
    results = Results(tmp_path / "x.jsonl", "tests")
    results.add("dead", run.Outcome(True, "t", 1.0))
    results.add("alive", run.Outcome(False, "", 1.0))
    assert Results(tmp_path / "x.jsonl", "tests").by_key.keys() == {"dead", "alive"}
    assert Results(tmp_path / "x.jsonl", "other tests").by_key.keys() == {"dead"}


def test_the_table_counts_the_killed_and_names_the_living(toy):
    places = sample(toy.tree, ["rlkern"], 4, seed=0)
    results = {x.key(toy.tree): run.Outcome(i < 2, "a test", 1.0) for i, x in enumerate(places[:3])}
    said = table(places, results, toy.tree)
    assert said.endswith("2 of 3 killed (67%); 1 alive, 0 of them known; 1 not tried")
    assert said.count("killed by a test") == 2 and said.count("ALIVE") == 1
