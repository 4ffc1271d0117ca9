# SPDX-License-Identifier: Apache-2.0
"""Rewards beside a task's own: `--reward task,rlkern.trainer.tasks.rewards:last_digit`.

They also show what such a function is: it is given lists, takes by name the columns that it wants,
and returns a number, or None where it cannot tell, for each completion.
"""

from __future__ import annotations

from rlkern.trainer.tasks.task import first_line


def signed(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    """Returns 1 for the right answer and −1 for any other, for algorithms that ask which answers
    are bad.

    >>> signed(["1+1=", "1+2="], ["2", "4"], answer=["2", "3"])
    [1.0, -1.0]
    """
    both = zip(completions, answer, strict=True)
    return [1.0 if first_line(text) == right else -1.0 for text, right in both]


def last_digit(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    """Returns 1 where the last character is right, the easier half of a sum, and 0 elsewhere.

    >>> last_digit(["17+25="], ["32"], answer=["42"])
    [1.0]
    """
    both = zip(completions, answer, strict=True)
    return [float(first_line(text)[-1:] == right[-1:]) for text, right in both]
