# SPDX-License-Identifier: Apache-2.0
"""Data files as records: .jsonl, .json, .parquet, or a folder that `datasets` saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlkern.runs.errors import UserError

INSTALL = "pip install rlkern[train]"


class Record(NamedTuple):
    """A row by its columns, and where it stands: the file with its line, entry or row, from 1."""

    where: str
    values: dict[str, Any]


def records(path: Path, key: str) -> list[Record]:
    """Returns the rows of a file, nothing of it from a hub; `key` is the setting that names it.

    Raises UserError for a file that is not there, is empty or holds something else, with the line.
    """
    read = _folder if path.is_dir() else _READERS.get(path.suffix)
    if read is None or not path.exists():
        why = "there is nothing at" if read else "got"
        raise UserError(
            f"{key} must be a {', '.join(_READERS)} file or a folder that datasets saved,"
            f" {why} {str(path)!r}"
        )
    try:
        found = read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key} {path} cannot be read: {error}") from error
    if not found:
        raise UserError(f"{key} {path} must hold rows, it is empty")
    return found


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, or of the names and contents of all files of a folder."""
    found = hashlib.sha256()
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if each.is_file():
            if path.is_dir():
                found.update(f"{each.relative_to(path)}\0".encode())
            with each.open("rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
    return found.hexdigest()


def _lines(path: Path) -> list[Record]:
    # Not splitlines: a text may hold other characters that end a line.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [
        _record(f"{path}, line {n}", _parsed(line, f"{path}, line {n}"))
        for n, line in enumerate(lines, 1)
        if line.strip()
    ]


def _entries(path: Path) -> list[Record]:
    every = _parsed(path.read_text(encoding="utf-8-sig") or "[]", str(path))
    if not isinstance(every, list):
        raise UserError(f"{path} must hold a JSON list of objects, got {type(every).__name__}")
    return [_record(f"{path}, entry {n}", entry) for n, entry in enumerate(every, 1)]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} must be a JSON object: {error}") from error


def _record(where: str, values: Any) -> Record:
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a JSON object, got {type(values).__name__}")
    return Record(where, values)


def _parquet(path: Path) -> list[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path} needs the package pyarrow: {INSTALL} ({error})") from error
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from error
    return _rows(path, rows)


def _folder(path: Path) -> list[Record]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{path} needs the package datasets: {INSTALL} ({error})") from error
    try:
        found = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} must be a folder that datasets saved: {error}") from error
    if isinstance(found, datasets.DatasetDict):
        raise UserError(
            f"{path} holds the splits {', '.join(found)}: name one, such as {path / min(found)}"
        )
    return _rows(path, found.to_list())


def _rows(path: Path, rows: list[dict]) -> list[Record]:
    return [Record(f"{path}, row {n}", _given(row)) for n, row in enumerate(rows, 1)]


def _given(value: Any) -> Any:
    """Returns nested values without the nulls that Arrow puts where only other rows have a key."""
    if isinstance(value, dict):
        return {key: _given(x) for key, x in value.items() if x is not None}
    return [_given(x) for x in value] if isinstance(value, list) else value


_READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _lines,
    ".json": _entries,
    ".parquet": _parquet,
}
