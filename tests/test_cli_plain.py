# SPDX-License-Identifier: Apache-2.0
"""The commands of a plain `pip install`, which brings torch and nothing for the trainer."""

import subprocess
import sys

import pytest

# As if nothing were there that only rlkern[train] or rlkern[control] brings.
WITHOUT = """
import sys

GONE = ("pydantic yaml rich transformers matplotlib pyarrow peft safetensors tensorboard gymnasium"
        " datasets reasoning_gym".split())

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Gone())
from rlkern.cli import main
sys.exit(main(sys.argv[1:]))
"""


def plain(*words):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *words], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "words",
    (["--help"], ["bench", "--help"], ["algorithms"], ["doctor"]),
    ids=" ".join,
)
def test_what_needs_no_trainer_serves(words):
    found = plain(*words)
    assert (found.returncode, found.stderr) == (0, "") and found.stdout


@pytest.mark.parametrize(
    "words",
    "train,train --help,eval x,sample x,chat x,show x,export x,compare,control --help".split(","),
)
def test_what_needs_a_trainer_says_what_to_install(words):
    found = plain(*words.split())
    command = words.split()[0]
    extra = f"rlkern[{'control' if command == 'control' else 'train'}]"
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith(f"rlkern {command} needs the packages of {extra}: No module ")
    assert found.stderr.endswith(f"; pip install '{extra}'\n") and found.stderr.count("\n") == 1


def test_a_wrong_word_is_a_sentence_all_the_same():
    assert "rlkern: there is no command 'bnech'; did you mean bench" in plain("bnech").stderr
    found = plain("bench", "--devcie", "cpu")
    assert found.returncode == 2
    assert found.stderr == "rlkern bench: there is no flag --devcie; did you mean --device\n"
