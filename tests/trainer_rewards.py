# SPDX-License-Identifier: Apache-2.0
"""A reward that differs within almost every group, even for an untrained model."""

import os
import time
from pathlib import Path

from rlkern.trainer.reward.signatures import reads_text

# "path of a file of lines:count:path of a file that lets it go on", for a run that a test stops.
HOLD = "RLKERN_TEST_HOLD"


def _wait_for_the_test() -> None:
    """Waits once the file has so many lines, so that no run outpaces the test that stops it."""
    if HOLD in os.environ:
        lines, count, released = os.environ[HOLD].split(":")
        while Path(lines).exists() and len(Path(lines).read_bytes().splitlines()) >= int(count):
            if Path(released).exists():
                break
            time.sleep(0.01)


@reads_text
def even_digits(prompts, completions):
    """Returns the share of even digits in each completion."""
    _wait_for_the_test()
    return [sum(c in "02468" for c in text) / max(1, len(text)) for text in completions]


@reads_text
def right_digits(prompts, completions, answer):
    """Returns the share of the answer's characters that each completion has in their places."""
    pairs = zip(completions, answer, strict=True)
    return [sum(a == b for a, b in zip(text, right)) / len(right) for text, right in pairs]


@reads_text
def starts_with_seven(prompts, completions):
    """Returns 1 for a completion that begins with 7: rare enough that most groups agree."""
    return [float(text[:1] == "7") for text in completions]


@reads_text
def starts_even(prompts, completions):
    """Returns 1 for a completion that begins with an even digit: about half of them do."""
    return [float(text != "" and text[0] in "02468") for text in completions]


def nothing(prompts, completions):
    """Returns 0 for every completion."""
    return [0.0] * len(completions)
