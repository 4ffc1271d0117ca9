# SPDX-License-Identifier: Apache-2.0
"""What a classic algorithm declares of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlkern.control.group import Settings
from rlkern.control.learner import Learner

LEARNS = ("value", "policy", "actor–critic", "prediction")
TABLE, DISCRETE, BOX = "table", "discrete", "box"
OBSERVATIONS, ACTIONS = (TABLE, BOX), (DISCRETE, BOX)


@dataclass(frozen=True)
class ControlAlgorithm:
    """One classic algorithm; its file in rlkern/control/algorithms holds it as ALGORITHM.

    name          as users type it, and the name of its file
    paper         where it was published, with the equation
    learns        "value" (action values), "policy", "actor–critic" (both), or "prediction" (the
                  values of a policy that is given)
    on_policy     whether it learns only from what its present policy did
    observations  "table" (finitely many states, each with its own entry) or "box" (a vector of
                  numbers; a discrete observation becomes one of 0 and 1)
    actions       kinds of action spaces that it can act in: "discrete", "box"
    settings      the class of its settings, whose defaults say where they come from
    learner       the class that acts and learns
    repeats       whether two runs of one seed are the same to the last bit
    recipes       settings by environment: what is known to learn it, with the source in a comment
    quick         settings with which a few hundred steps go through all that the algorithm does
    """

    name: str
    paper: str
    learns: str
    on_policy: bool
    observations: str
    actions: tuple[str, ...]
    settings: type[Settings]
    learner: type[Learner]
    repeats: bool = True
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, words, known in (
            ("learns", (self.learns,), LEARNS),
            ("observations", (self.observations,), OBSERVATIONS),
            ("actions", self.actions, ACTIONS),
        ):
            for word in words:
                if word not in known:
                    expected = ", ".join(known)
                    raise ValueError(f"{self.name}: {key} must be of {expected}, got {word!r}")
