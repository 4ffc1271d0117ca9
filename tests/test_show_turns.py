# SPDX-License-Identifier: Apache-2.0
"""`rlkern train --show` of an environment with turns, and a command that is stopped early."""

import importlib

from look_helpers import said

from rlkern import cli

SHOWN = ("--device", "cpu", "--eval.items", 20, "--show", 1)


def test_the_turns_of_an_environment_are_shown_where_they_are_given(capsys):
    shown = said(capsys, "train", "--algorithm", "sft", "--task", "guess", *SHOWN)
    # The ids that are learned stand in brackets, those of the environment between them.
    ids = shown.partition("ids: ")[2]
    assert ids.count("[") > 1 and "] " in ids.rpartition("[")[0]


def test_the_turns_of_an_environment_that_come_in_the_run_are_said_to_come(capsys):
    shown = said(capsys, "train", "--task", "guess", *SHOWN)
    assert "what the environment says comes between the model's messages" in shown
    plain = said(capsys, "train", "--task", "addition", *SHOWN)
    assert "environment" not in plain


def test_ctrl_c_while_a_command_is_imported_is_no_traceback(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "rlkern train: stopped\n"
