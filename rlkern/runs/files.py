# SPDX-License-Identifier: Apache-2.0
"""Writing so that a reader sees all of a file or folder, or none of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial-"


def publish(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside `target` and rename it into place; after any failure `target` is as it
    was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{target.name}-", dir=target.parent))
    try:
        fill(partial)
        for path in partial.rglob("*"):
            sync(path)
        sync(partial)
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            # Another process published the same folder first; its content is as good as ours.
            if not target.is_dir():
                raise
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(path: Path) -> None:
    """Push a file or folder to the disk: a rename must not reach it before the content does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step; after any failure the old content is still there."""
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder."""
    for path in folder.glob(f"{PARTIAL}*"):
        whole = path.is_dir() and not path.is_symlink()
        shutil.rmtree(path) if whole else path.unlink()
