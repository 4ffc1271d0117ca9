# SPDX-License-Identifier: Apache-2.0
"""The map of the study notes: what it names exists, and its commands run."""

import re
import shlex

import pytest
import trainer_helpers

import rlkern
from rlkern import cli
from rlkern.compare.notes import IDENTITIES, PARTS, page

ROOT = trainer_helpers.ROOT
COMMANDS = sorted({part.command for part in PARTS if part.command})


def test_the_page_is_what_its_generator_makes():
    assert (ROOT / "docs" / "notes.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_what_a_part_names_exists(part):
    assert (ROOT / part.file).is_file()
    assert not part.operation or part.operation in rlkern.__all__
    assert not part.curve or (ROOT / "docs" / part.curve).is_file()


@pytest.mark.parametrize("identity, test", IDENTITIES)
def test_the_test_of_an_identity_exists(identity, test):
    file, _, name = test.partition("::")
    assert re.search(rf"(?m)^def {name}\b", (ROOT / file).read_text(encoding="utf-8")), identity


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command, tmp_path, monkeypatch, capsys):
    program, name, *words = shlex.split(command)
    monkeypatch.chdir(ROOT)
    assert program == "rlkern"
    if name == "control":
        pytest.importorskip("gymnasium")
        more = ["--output_dir", str(tmp_path), "--steps", "300", "--eval_episodes", "1"]
    else:  # test_algorithms.py runs every one of these
        more = ["--print_config"]
    assert cli.main([name, *words, *more]) == 0, capsys.readouterr().err
