# SPDX-License-Identifier: Apache-2.0
"""Holds the rules of the layout; each is a function that returns offences and can fail."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from architecture_rules import RULES, Rule, library
from import_rules import ROOT

import rlkern


def files() -> list[Path]:
    """Returns the tracked files, or outside git all there are, relative to the root."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\n") if not listed.returncode else []
    found = [Path(n) for n in names if n] or [p.relative_to(ROOT) for p in ROOT.rglob("*.*")]
    return [p for p in found if (ROOT / p).is_file()]


EXAMPLES = [
    pytest.param(rule, path, text, id=f"{name}-{path}-{i}")
    for name, rule in RULES.items()
    for path, texts in rule.bad.items()
    for i, text in enumerate(texts)
]


@pytest.mark.parametrize("name", RULES)
def test_the_tree_obeys(name: str):
    rule = RULES[name]
    texts = {p: (ROOT / p).read_text(encoding="utf-8") for p in files() if rule.applies(p)}
    assert not (offences := [o for p, text in texts.items() for o in rule.check(p, text)]), (
        "\n".join(offences)
    )


@pytest.mark.parametrize(("rule", "path", "text"), EXAMPLES)
def test_the_rule_catches_its_bad_examples(rule: Rule, path: str, text: str):
    assert rule.applies(Path(path))
    assert rule.check(Path(path), text)


def test_every_rule_applies_to_some_file():
    tracked = files()
    idle = [name for name, rule in RULES.items() if not any(rule.applies(p) for p in tracked)]
    assert not idle


def test_every_folder_of_the_library_is_a_package():
    folders = {p.parent for p in files() if library(p) and p.parts[0] != "benchmarks"}
    assert not [str(f) for f in folders if not (ROOT / f / "__init__.py").is_file()]


def said_by(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_the_command_line_lists_what_exists():
    help_text = said_by(sys.executable, "-m", "rlkern", "--help")
    assert all(command in help_text for command in ("train", "doctor", "algorithms"))
    listed = said_by(sys.executable, "-m", "rlkern", "algorithms")
    assert all(name in listed for name in rlkern.algorithms())


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = {t for line in re.findall(r"(?m)^\.PHONY: (.*)", text) for t in line.split()}
    shown = set(
        re.findall(r"(?m)^  make (\S+)  +\S", said_by("make", "--no-print-directory", "help"))
    )
    assert shown == {target for target in phony if not target.startswith("gpu-")}
