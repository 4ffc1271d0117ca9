# SPDX-License-Identifier: Apache-2.0
"""Which column of a file is what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlkern.runs.errors import UserError
from rlkern.runs.settings.names import nearest
from rlkern.trainer.data.files import Record

# What a column may be, and the names by which it is found unless data.columns says another one.
ROLES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem"),
    "answer": ("answer", "ground_truth", "reward_model.ground_truth", "solution"),
    "messages": ("messages",),
    "completion": ("completion", "response"),
    "text": ("text",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "label": ("label",),
    "tools": ("tools",),
}


def columns_of(records: list[Record], named: Mapping[str, str]) -> dict[str, str]:
    """Returns the column of each role that the file has, by the names that were given or the usual
    ones.

    >>> columns_of([Record("x.jsonl, line 1", {"question": "1+1=", "answer": "2"})], {})
    {'prompt': 'question', 'answer': 'answer'}
    """
    for role in named:
        if role not in ROLES:
            raise UserError(
                f"data.columns.{role} is none of {', '.join(ROLES)}{nearest(role, ROLES)}"
            )
    found, has = {}, {name for record in records for name in record.values}
    for role, usual in ROLES.items():
        for name in (named[role],) if role in named else usual:
            if any(_at(record.values, name) is not None for record in records):
                found[role] = name
                break
        else:
            if role in named:
                raise UserError(
                    f"{records[0].where}: there is no column {named[role]!r} (data.columns.{role});"
                    f" the file has {', '.join(sorted(has))}"
                )
    return found


def _at(values: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a column, whose name may lead into another by points."""
    if name in values:
        return values[name]
    first, _, rest = name.partition(".")
    inside = values.get(first)
    return _at(inside, rest) if rest and isinstance(inside, Mapping) else None


class Row:
    """A record whose columns are asked for by their roles."""

    def __init__(self, record: Record, columns: Mapping[str, str]) -> None:
        self.where, self.values, self._columns = record.where, record.values, columns

    def has(self, role: str) -> bool:
        """Returns whether the file has such a column."""
        return role in self._columns

    def has_all(self, roles: str) -> bool:
        """Returns whether this row has a value for each of the roles."""
        return all(self.optional(role) is not None for role in roles.split())

    def name(self, role: str) -> str:
        """Returns the column of a role."""
        return self._columns.get(role, role)

    def place(self, role: str) -> str:
        """Returns where a column of this row is, for a sentence."""
        return f"{self.where}, column {self.name(role)}"

    def get(self, role: str) -> Any:
        """Returns the value of a role that every row must have."""
        value = _at(self.values, self._columns[role])
        if value is None:
            raise UserError(f"{self.place(role)} must be there, as in other rows, it is not")
        return value

    def optional(self, role: str) -> Any:
        """Returns the value of a role that a row may lack, None then."""
        return _at(self.values, self._columns[role]) if self.has(role) else None
