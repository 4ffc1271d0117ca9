# SPDX-License-Identifier: Apache-2.0
"""True and false statements as preference pairs: the 260 that the package TextArena ships."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from rlkern.runs.errors import UserError

PACKAGE = "TextArena==0.7.4"
FILE = Path("envs") / "TruthAndDeception" / "facts.json"
# The statements stand alone; a prompt must not be empty, and this one favours neither.
PROMPT = "Here is a fact about the world.\n"


def facts_file() -> Path:
    """Returns the file inside the installed package; Raises UserError if it is not there."""
    # Importing the package would need its many requirements; only its folder is wanted.
    found = importlib.util.find_spec("textarena")
    if found is None or found.origin is None:
        raise UserError(
            f"pairs.source facts needs the package TextArena: pip install --no-deps {PACKAGE}"
        )
    path = Path(found.origin).parent / FILE
    if not path.is_file():
        raise UserError(f"the package TextArena must hold {FILE}, it does not: install {PACKAGE}")
    return path


def statements() -> list[tuple[str, str]]:
    """Returns (true statement, false statement) of every entry; Raises UserError for a file of
    another form."""
    path, found = facts_file(), list[tuple[str, str]]()
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            facts, right = entry["facts"], entry["correct_fact"]
            (wrong,) = set(facts) - {right}
            found.append((str(facts[right]), str(facts[wrong])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path.name} of TextArena cannot be read: {error}; use {PACKAGE}"
        ) from error
    return found
