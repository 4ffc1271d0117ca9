# SPDX-License-Identifier: Apache-2.0
"""Tables that grow with a run: a folder with one Parquet file for each step that wrote one.

What is there is never opened again for writing, so a kill cannot damage it. Readers of Parquet take
the folder for one table, and so do pandas, polars, DuckDB and datasets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkern.runs.errors import UserError
from rlkern.runs.files import PARTIAL, sync

_NAME = re.compile(r"step-(\d+)\.parquet")


def check_installed(key: str, off: str) -> None:
    """Raises UserError if pyarrow is not installed, which a key of the settings needs; off is what
    does without."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{key} needs the package pyarrow, from rlkern[train]: {error}; pip install pyarrow, or"
            f" {off}"
        ) from error


def write_step(
    folder: Path, step: int, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]
) -> None:
    """Write the rows of a step, by column, each of a type that pyarrow has under this name."""
    import pyarrow
    from pyarrow.parquet import write_table

    folder.mkdir(exist_ok=True)
    arrays = {
        name: pyarrow.array(values, pyarrow.type_for_alias(types[name]))
        for name, values in columns.items()
    }
    target = _file(folder, step)
    # Beside the folder, so that no reader of it meets half a file.
    partial = folder.parent / f"{PARTIAL}{target.name}"
    try:
        write_table(pyarrow.table(arrays), partial, compression="zstd")
        sync(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def steps_in(folder: Path) -> list[int]:
    """Returns the steps that a folder has rows of, in their order."""
    found = [_NAME.fullmatch(path.name) for path in folder.glob("step-*.parquet")]
    return sorted(int(each[1]) for each in found if each)


def drop_after(folder: Path, step: int) -> None:
    """Remove the rows of steps past a checkpoint, which a resumed run takes again."""
    for later in (each for each in steps_in(folder) if each > step):
        _file(folder, later).unlink()


def read_step(folder: Path, step: int) -> list[dict[str, Any]]:
    """Returns the rows of a step; Raises UserError for a file that cannot be read."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    path = _file(folder, step)
    try:
        return ParquetFile(path).read().to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{path} cannot be read: {first}; delete it to see the others") from error


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.parquet"
