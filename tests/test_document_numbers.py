# SPDX-License-Identifier: Apache-2.0
"""Every time, memory and ratio that a document claims comes from a command.

Most stand in blocks that a generator writes, each held to its rows by another test. What people
wrote is here with the command that printed it; a claim that is not here fails.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# Whole pages that tests hold to their generators.
GENERATED = {"docs/algorithms.md", "docs/models.md"}
NUMBER = r"\d[\d,.]*(?: \d{3})*"
UNIT = r"(?:ms|µs|s|seconds?|minutes?|hours?|[kKMG]i?B|tokens/s|tokens a second|%)"
CLAIM = re.compile(
    rf"(?<![\w.]){NUMBER}(?: (?:to|or) {NUMBER})? ?{UNIT}(?![\w/])"
    rf"|(?<![\w.]){NUMBER} times (?:faster|slower|longer|as|less|more)|\d\.?\d*× "
)
TABLE = re.compile(rf"^\|.*(?:, |^| |\(){UNIT}[ ,|)].*\|\n\| ?-", re.M)
# {document: {claim: the command that printed it}}
PRINTED = {
    "README.md": {
        "349 s": "rlkern train --config configs/smollm2_arithmetic.yaml",
        "40 minutes": "make test",
        "0.72 ms": "python -m benchmarks.instructions",
    },
    "docs/scale.md": {"0.2%": "pytest tests/test_trainer_scale.py"},
    "docs/training.md": {
        "378 to 392 s": "rlkern train --config configs/ppo_reward_model.yaml",
        "165 s": "rlkern train --config configs/smollm2_dpo.yaml",
        "| run": "rlkern train --config configs/smollm2_arithmetic.yaml",
    },
    "docs/integrations.md": dict.fromkeys(("| prompts", "50.7 s"), "python -m benchmarks.trl_step"),
    "docs/your-data.md": {
        "166 seconds": "rlkern train --data.train sums.jsonl",
        "556 seconds": "rlkern train --model smollm2 --data.train train.jsonl",
        "70 %": "rlkern train --model smollm2 --data.train train.jsonl",
        "11 %": "rlkern train --model smollm2 --data.train train.jsonl",
    },
}


def claims(text: str) -> list[str]:
    """Returns what a document claims outside of generated blocks and code, in its order, a table by
    how its head begins."""
    text = re.sub(r"<!-- \w+: .*?<!-- end[^>]*-->", "", text, flags=re.S)
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    found = [match[0].strip() for match in CLAIM.finditer(text)]
    return found + [" ".join(re.split(r"[\s,]+", x[0])[:2]) for x in TABLE.finditer(text)]


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS) - GENERATED))
def test_every_claim_was_printed_by_a_command(document):
    found = claims((ROOT / document).read_text(encoding="utf-8"))
    assert set(found) == PRINTED.get(document, {}).keys()


def test_code_and_generated_blocks_claim_nothing():
    text = "It took 3.5 ms, 12 GB and `9 s`; 3 steps are 2 times faster.\n\n| case, ms |\n| --- |\n"
    assert claims(text) == ["3.5 ms", "12 GB", "2 times faster", "| case"]
    assert claims(f"<!-- numbers: x -->\n{text}<!-- end of numbers -->\n```\n5 s\n```") == []


def test_a_claim_that_nothing_printed_is_found():
    text = (ROOT / "README.md").read_text(encoding="utf-8") + "\nIt is 7 times faster: 3.25 ms."
    assert set(claims(text)) - PRINTED["README.md"].keys() == {"7 times faster", "3.25 ms"}


@pytest.mark.parametrize("command", sorted({c for x in PRINTED.values() for c in x.values()}))
def test_the_command_of_a_claim_exists(command):
    program, *words = command.split()
    if program == "python":
        assert (ROOT / words[1].replace(".", "/")).with_suffix(".py").is_file()
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "pytest":
        assert (ROOT / words[0]).is_file()
    else:
        assert program == "rlkern"
        configs = [word for word in words if word.endswith(".yaml")]
        assert all((ROOT / path).is_file() for path in configs)
