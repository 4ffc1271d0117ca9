# SPDX-License-Identifier: Apache-2.0
"""Which of rlkern's algorithms can be the loss function of another trainer, said before a step."""

from collections.abc import Collection
from typing import Any

import torch

import rlkern
from rlkern.algorithms import Algorithm
from rlkern.algorithms import algorithm as find_algorithm

# What a loss is asked for by its trainer; a coefficient of such a name would take its place.
_ARGUMENTS = (
    "logprob", "entropy", "advantage", "mask", "old_logprob", "ref_logprob", "correction", "weight",
    "reduction", "cu_seqlens", "algorithm",
)  # fmt: skip


def reason(declared: Algorithm, trainer: str, statistics: Collection[str] = ()) -> str | None:
    """Returns why an algorithm cannot be a trainer's loss function, or None if it can.

    statistics  those that the function makes from what it is given

    >>> reason(find_algorithm("a_star_po"), "verl")
    'its old_logprob is that of the reference policy, and verl passes the old policy’s'
    """
    if declared.anchor == "reference":
        return (
            f"its old_logprob is that of the reference policy, and {trainer} passes the old"
            " policy’s"
        )
    if declared.statistic and declared.statistic not in statistics:
        return (
            "how its tokens count depends on all tokens of an optimizer step, and"
            f" {trainer} passes those of a micro-batch"
        )
    if "teacher" in declared.needs:
        return f"its advantage is that of a teacher, which {trainer} does not have"
    if declared.sampling == "duplicate":
        return (
            f"it copies groups of a batch, which {trainer} does not; without that it is another one"
        )
    return None


def check(
    algorithm: str, coefficients: dict[str, Any], trainer: str, scores: Collection[str] = ()
) -> None:
    """Raises ValueError or TypeError for an algorithm or a coefficient that cannot be a trainer's.

    scores  which of entropy and ref_logprob the trainer's function is given
    """
    declared = find_algorithm(algorithm)
    if (why := reason(declared, trainer)) is not None:
        raise ValueError(f"{declared.name} is no loss of {trainer}: {why}")
    if taken := [name for name in coefficients if name in _ARGUMENTS]:
        raise TypeError(f"{declared.name}: {taken[0]} is given by {trainer} and no coefficient")
    zero = torch.zeros(1, 1)
    given: dict[str, Any] = {**dict.fromkeys(scores, zero), **coefficients}
    rlkern.token_objective(zero, zero, zero == 0, old_logprob=zero, algorithm=algorithm, **given)
