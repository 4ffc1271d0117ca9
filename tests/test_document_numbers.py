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
RATE = r"(?:[kKMGT]i?B|[GT]?FLOPs?|tokens?|tok)(?:/s| a second| per second)"
UNIT = rf"(?:{RATE}|ms|µs|ns|s|seconds?|min|minutes?|h|hours?|[kKMGT]i?B|%| percent|[GT]FLOPS)"
OFTEN = r"(?:[\d.]*\d|two|three|four|five|six|seven|eight|nine|ten|twenty|a hundred)"
THAN = r"(?:faster|slower|longer|less|more|as (?:fast|slow|long|much))"
CLAIM = re.compile(
    rf"(?<![\w.]){NUMBER}(?: (?:to|or) {NUMBER})? ?{UNIT}(?![\w/])"
    rf"|(?<![\w.])(?:{OFTEN} times|{OFTEN} ?[x×]|twice) {THAN}\b|\d\.?\d*× "
)
TABLE = re.compile(rf"^\|.*(?:, |^| |\(){UNIT}[ ,|)].*\|\n\| ?-", re.M)
# {document: {claim: the command that printed it}}
PRINTED = {
    "README.md": {
        "349 s": "rlkern train --config configs/smollm2_arithmetic.yaml",
        "22 minutes": "make test",
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


@pytest.mark.parametrize("claim", (
    "12 GB/s", "0.5 GiB a second", "3 GFLOP/s", "700 TFLOPS", "91 tok/s", "64 tokens per second",
    "7x faster", "9 times as fast", "twice as fast", "three times slower", "40 min", "1.5 h",
    "20 percent", "33 %",
))  # fmt: skip
def test_a_rate_and_a_ratio_are_claims_in_every_spelling(claim):
    assert claims(f"It reaches {claim}, measured.") == [claim]


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


def test_the_tests_that_passed_on_a_gpu_are_as_many_as_its_run_printed():
    said = re.findall(r"an H200: (\d+) tests passed \(`(.+?)`\)", (ROOT / "README.md").read_text())
    ((count, path),) = said
    assert re.search(rf"^{count} passed", (ROOT / path).read_text(encoding="utf-8"), re.M)
