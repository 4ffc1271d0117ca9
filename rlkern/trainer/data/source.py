# SPDX-License-Identifier: Apache-2.0
"""The rows that a run learns from and those that it is only measured on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkern.runs import code
from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import Answer, Chat, identity
from rlkern.trainer.data.examples import Example, Wording, examples
from rlkern.trainer.data.files import Record, digest, records
from rlkern.trainer.settings import Settings


@dataclass(frozen=True)
class Source:
    """The rows of data.train, those held out, and what a person should know of the split."""

    train: list[Example]
    held_out: list[Example]
    notes: tuple[str, ...]


def read_source(settings: Settings) -> Source:
    """Returns the rows to learn from and those held out: the first eval.items of data.eval, or a
    part of data.train that the seed chooses, at most a fifth.

    A row whose prompt is held out is not learned from, whichever file it is in.
    """
    data = settings.data
    assert data.train is not None
    train, name = _read(data.train, "data.train", settings), Path(data.train).name
    if data.eval is None:
        return _split(train, name, settings)
    every = _distinct(_read(data.eval, "data.eval", settings))
    _check_alike(train, every)
    where = f"of the {len(every)} prompts of {Path(data.eval).name}"
    return _without(train, every[: settings.eval.items], f"data.train {data.train}", name, where)


def of_records(found: list[Record], name: str, settings: Settings) -> Source:
    """Returns rows that are no file's as read_source returns those of data.train."""
    return _split(_examples(found, settings), name, settings)


def _split(train: list[Example], name: str, settings: Settings) -> Source:
    place = name if settings.data.train is None else f"data.train {settings.data.train}"
    return _without(train, _part(train, place, settings), place, name, "by the seed")


def _without(
    train: list[Example], held: list[Example], place: str, name: str, where: str
) -> Source:
    """Returns the rows without those whose prompts are held out, and the split in a sentence."""
    barred = {key_of(example) for example in held}
    rest = [example for example in train if key_of(example) not in barred]
    if not rest:
        raise UserError(f"{place}: every row is held out; lower eval.items")
    note = f"{name}: {len(rest)} rows to learn from, {len(held)} held out ({where})"
    own = {id(example) for example in train}
    same = len(train) - len(rest) - sum(id(example) in own for example in held)
    if same > 0:
        note += f"; {same} rows left out, whose prompts are held out"
    return Source(rest, held, (note,))


def digests(settings: Settings) -> dict[str, str]:
    """Returns the SHA-256 of what data.train and data.eval name, by key, and of the files of the
    run's functions, by name."""
    given = {"data.train": settings.data.train, "data.eval": settings.data.eval}
    found = {key: digest(Path(path)) for key, path in given.items() if path is not None}
    return {**found, **code.digests(settings.task, *settings.reward.functions)}


def check_unchanged(settings: Settings, before: dict[str, str], then: str) -> list[str]:
    """Returns what a person should know of functions that have changed since a run began, which may
    be mended, each with `then`, what comes of it; Raises UserError for other data."""
    now, notes = digests(settings), list[str]()
    for key in sorted({*now, *before}):
        if now.get(key) == before.get(key):
            continue
        if code.is_code(key):
            notes.append(
                f"{key} has changed since the run began (SHA-256 was"
                f" {before.get(key, 'none')[:12]}, is {now.get(key, 'none')[:12]}): {then}"
            )
        else:
            path = getattr(settings.data, key.removeprefix("data."))
            raise UserError(
                f"{key} {path} has changed since the run began (SHA-256 was"
                f" {before.get(key, 'none')[:12]}, is {now.get(key, 'none')[:12]}): a run is"
                " resumed and measured with the rows it began with; start a new run for these"
            )
    return notes


def key_of(example: Example) -> str:
    """Returns what makes a row the same question as another one."""
    return str(example.target) if example.prompt is None else identity(example.prompt)


def alphabet(rows: list[Example]) -> str:
    """Returns every character of the rows, in the order of their codes: what a model that is made
    for them has to know."""
    found = set[str]()
    for row in rows:
        asked: Answer | None = row.prompt.messages if isinstance(row.prompt, Chat) else row.prompt
        for said in (asked, row.answer, row.target, row.rejected):
            found.update(*_texts(said))
    return "".join(sorted(found))


def _texts(said: Answer | None) -> list[str]:
    if said is None or isinstance(said, str):
        return [said or ""]
    return [str(message.get("content") or "") for message in said]


def _read(path: str, key: str, settings: Settings) -> list[Example]:
    return _examples(records(Path(path), key), settings)


def _examples(found: list[Record], settings: Settings) -> list[Example]:
    data = settings.data
    return examples(found, data.columns, Wording(data.system, data.chat, data.template))


def _distinct(rows: list[Example]) -> list[Example]:
    """Returns the first row of each prompt; of rows that are judged by themselves all."""
    if rows[0].label is not None:
        return rows
    return list({key_of(row): row for row in reversed(rows)}.values())[::-1]


def _part(rows: list[Example], name: str, settings: Settings) -> list[Example]:
    """Returns rows that the seed chooses, whatever they are chosen for."""
    every = _distinct(rows)
    count = min(settings.eval.items, len(every) // 5)
    if not count:
        raise UserError(
            f"{name} must hold at least 5 different prompts, of which one"
            f" is held out, got {len(every)}; give more, or a data.eval"
        )
    return random.Random(f"{settings.seed}/data").sample(every, len(every))[:count]


def _check_alike(train: list[Example], held: list[Example]) -> None:
    def form(example: Example) -> dict[str, Any]:
        return {
            "a prompt": example.prompt is not None,
            "messages as its prompt": isinstance(example.prompt, Chat),
            "an answer": example.answer is not None,
            "a completion": example.target is not None,
            "a rejected answer": example.rejected is not None,
            "a label": example.label is not None,
        }

    mine, other = form(train[0]), form(held[0])
    for what, has in mine.items():
        if has is not other[what]:
            raise UserError(
                f"{held[0].where} must be of the form of data.train, whose rows"
                f" {'have' if has else 'have not'} {what}"
            )
