# SPDX-License-Identifier: Apache-2.0
"""`rlkern algorithms`: both registries, as their files say it."""

from __future__ import annotations

import importlib
import shutil
import sys
import textwrap
from typing import Any

_HEADS = (
    "Learn from answers of their own (rlkern.policy_loss):",
    "Learn from given answers:",
)
# What a declaration's words mean to a reader who decides whether an algorithm fits.
_NEEDS = {
    "value": "a value function",
    "reference": "the starting model",
    "reference_samples": "answers of the starting model",
    "greedy": "a greedy answer to each prompt",
    "several_rewards": "each reward on its own",
    "teacher": "a teacher",
    "kl": "KL in the reward",
    "overlong": "overlong punishment",
    "dynamic": "dynamic sampling",
    "duplicate": "copies of useful groups",
    "answers": "right answers",
    "pairs": "preference pairs",
    "judged": "answers that are each good or bad",
}


def run(arguments: list[str]) -> int:
    """Returns 0 after listing every registered algorithm."""
    if arguments:
        print("rlkern algorithms takes no options", file=sys.stderr)
        return 0 if arguments[0] in ("-h", "--help") else 2
    import rlkern

    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    registries: tuple[dict[str, Any], ...] = (rlkern.algorithms(), rlkern.offline_algorithms())
    for head, known in zip(_HEADS, registries):
        print(f"{head}\n" if known else "", end="")
        for algorithm in known.values():
            print(f"\n  {algorithm.name}  ({algorithm.paper})")
            print(textwrap.fill(summary(algorithm), width, **_indented(4, 4)))
            for label, text in _facts(algorithm):
                print(textwrap.fill(f"{label:<9} {text}", width, **_indented(4, 14)))
        print()
    print("rlkern train --algorithm NAME trains with one; its file says where each number is from.")
    return 0


def _indented(first: int, rest: int) -> dict[str, Any]:
    return {"initial_indent": " " * first, "subsequent_indent": " " * rest}


def summary(algorithm: Any) -> str:
    """Returns what the first line of the algorithm's file says it is.

    >>> summary(rlkern.algorithms()["sapo"])
    'SAPO: a sigmoid of the ratio instead of the clip.'
    """
    module = importlib.import_module(f"rlkern.algorithms.{algorithm.name}")
    return (module.__doc__ or "").strip().split("\n")[0]


def _facts(algorithm: Any) -> list[tuple[str, str]]:
    """Returns (label, text) of what a person chooses by; labels without a text are left out."""
    needs = (*algorithm.needs, *algorithm.reward_terms)
    found = (algorithm.learns_from, algorithm.sampling, *needs)
    words = [_NEEDS[word] for word in found if word in _NEEDS]
    made = (
        f"advantage {algorithm.advantage}, gate {algorithm.gate} by {algorithm.level},"
        f" mean by {algorithm.aggregation}"
        + (f", tokens weighted by statistic {algorithm.statistic}" if algorithm.statistic else "")
        if algorithm.online
        else f"loss {algorithm.loss}, trains {algorithm.trains}"
    )
    facts = [
        ("made of", made),
        ("needs", ", ".join(words)),
        ("defaults", _listed(algorithm.defaults)),
        ("settings", _listed(algorithm.settings)),
    ]
    return [(label, text) for label, text in facts if text]


def _listed(values: dict[str, Any]) -> str:
    shown = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
