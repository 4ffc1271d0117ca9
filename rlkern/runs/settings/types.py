# SPDX-License-Identifier: Apache-2.0
"""Types of settings: a bound is part of the type, and so is the sentence that states it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field


@dataclass(frozen=True)
class Says:
    """What an error message expects of a value: "lr must be <expected>, got …"."""

    expected: str


def _number(value: Any) -> Any:
    """Returns the value, and the number that a text such as 1e3 is in a file; Raises ValueError for
    true and false, which Python counts as numbers."""
    if isinstance(value, str) and "e" in value.lower():
        value = float(value)
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("not a finite number")
    return value


def _bound(value: Any) -> Any:
    """Returns the value, which may be infinite; Raises ValueError for true, false and NaN."""
    if isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("not a number")
    return value


def _coefficient(value: Any) -> Any:
    """Returns the number that a text holds, any other text as it is.

    >>> _coefficient("inf"), _coefficient("k3")
    (inf, 'k3')
    """
    try:
        value = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return _bound(value)


def _split(value: Any) -> Any:
    """Returns the parts of a text with commas, in brackets or not, and a list of one for a single
    value; Raises ValueError for a part that is empty.

    >>> _split("sampled, greedy"), _split(4), _split([1, 2]), _split("[]")
    (['sampled', 'greedy'], [4], [1, 2], [])
    """
    if isinstance(value, str):
        value = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        if "" in parts:
            raise ValueError("a part is empty")
        return parts
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _once(values: tuple) -> tuple:
    """Returns the values; Raises ValueError for one that is there twice."""
    if len(set(values)) < len(values):
        raise ValueError("a value is there twice")
    return values


_Number = BeforeValidator(_number)
Once = AfterValidator(_once)
Listed = BeforeValidator(_split)

Count = Annotated[int, _Number, Field(ge=1), Says("a whole number, at least 1")]
# More are no faster, since they take turns, and a mistyped number of them fills the memory.
Copies = Annotated[int, _Number, Field(ge=1, le=10_000), Says("a whole number from 1 to 10000")]
Whole = Annotated[int, _Number, Field(ge=0), Says("a whole number, 0 or more")]
ZeroOrOne = Annotated[int, _Number, Field(ge=0, le=1), Says("0 or 1")]
Seed = Annotated[int, _Number, Field(ge=0, lt=2**63), Says("a whole number from 0 to 2**63 - 1")]
Number = Annotated[float, _Number, Field(allow_inf_nan=False), Says("a finite number")]
# A number, or a name such as that of a KL estimator. The loss says which may be infinite: a clamp
# that is off.
Coefficient = Annotated[
    float | str, BeforeValidator(_coefficient), Says("a number or the name of a choice")
]
# Above which nothing is held where it is inf.
Bound = Annotated[float, BeforeValidator(_bound), Field(gt=0), Says("a number above 0, or inf")]
Positive = Annotated[
    float, _Number, Field(gt=0, allow_inf_nan=False), Says("a finite number above 0")
]
NotNegative = Annotated[
    float, _Number, Field(ge=0, allow_inf_nan=False), Says("a finite number, 0 or more")
]
Share = Annotated[float, _Number, Field(ge=0, le=1), Says("a number between 0 and 1")]
PositiveShare = Annotated[float, _Number, Field(gt=0, le=1), Says("a number above 0, at most 1")]
BelowOne = Annotated[float, _Number, Field(ge=0, lt=1), Says("a number from 0 to below 1")]
# Lower temperatures overflow float32 logits.
Temperature = Annotated[
    float, _Number, Field(ge=1e-4, allow_inf_nan=False), Says("a finite number, at least 1e-4")
]
Counts = Annotated[tuple[Count, ...], Listed, Field(min_length=1), Says("whole numbers from 1")]
Numbers = Annotated[tuple[Number, ...], Listed, Field(min_length=1), Says("finite numbers")]
Words = Annotated[tuple[str, ...], Listed, Field(min_length=1), Says("at least one name")]
TrackerNames = Annotated[
    tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...],
    Listed,
    Once,
    Says("names among tensorboard, trackio, wandb, mlflow, each once"),
]
