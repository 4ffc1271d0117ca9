# SPDX-License-Identifier: Apache-2.0
"""Preference pairs: where they come from, which are held out, and how a run keeps them."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkern.trainer.errors import UserError
from rlkern.trainer.files import publish
from rlkern.trainer.offline.statements import PROMPT, statements
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.reads import FACTS, SAMPLED

# The folder of a run that holds its pairs, whatever their source, and its two files.
FOLDER, TRAIN, HELD_OUT = "pairs", "train.jsonl", "held_out.jsonl"
SUFFIX = ".jsonl"
_KEYS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer to it, and the tokens of all three if the answers
    were sampled: another text's tokens need not be those that a model wrote."""

    prompt: str
    chosen: str
    rejected: str
    ids: tuple[list[int], list[int], list[int]] | None = None


@dataclass(frozen=True)
class Pairs:
    """The pairs a run learns from, and those it is only measured on."""

    train: list[Pair]
    held_out: list[Pair]


def check_source(settings: Settings) -> None:
    """Raises UserError, before a model is loaded, for pairs that are not there."""
    source = settings.pairs.source
    if source not in (SAMPLED, FACTS) and not source.endswith(SUFFIX):
        raise UserError(f"pairs.source must be sampled, facts or a .jsonl file, got {source!r}")
    given_pairs(settings)


def given_pairs(settings: Settings) -> Pairs | None:
    """Returns the pairs of a source that needs no model, split by the seed; None for sampled
    ones."""
    source, prompts = settings.pairs.source, settings.batch.prompts
    if source == SAMPLED:
        return None
    if source == FACTS:
        every = [Pair(PROMPT, true, false) for true, false in statements()]
    else:
        every = read(Path(source))
    held = min(settings.eval.items, len(every) // 5)
    if held < 1 or len(every) - held < prompts:
        raise UserError(
            f"pairs.source {source} must leave a batch of {prompts} (batch.prompts) after a fifth"
            f" is held out, got {len(every)} pairs; lower batch.prompts or give more pairs"
        )
    random.Random(f"{settings.seed}/pairs").shuffle(every)
    return Pairs(every[held:], every[:held])


def write(pairs: Pairs, run: Path) -> None:
    """Writes the pairs into the run, both files or none."""

    def fill(folder: Path) -> None:
        for name, part in ((TRAIN, pairs.train), (HELD_OUT, pairs.held_out)):
            lines = [json.dumps(_entry(pair)) + "\n" for pair in part]
            (folder / name).write_text("".join(lines), encoding="utf-8")

    publish(run / FOLDER, fill)


def _entry(pair: Pair) -> dict[str, Any]:
    return {key: x for key, x in dataclasses.asdict(pair).items() if x is not None}


def kept_pairs(run: Path) -> Pairs | None:
    """Returns the pairs that a run keeps, None if it has none yet."""
    folder = run / FOLDER
    if not folder.is_dir():
        return None
    return Pairs(*(read(folder / name, own=True) for name in (TRAIN, HELD_OUT)))


def read(path: Path, *, own: bool = False) -> list[Pair]:
    """Returns the pairs of a file, one JSON object per line with prompt, chosen and rejected, and
    with ids in a file of the run's own; Raises UserError, which names the line, for anything else.
    Other keys are not read."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"pairs {path} cannot be read: {error}") from error
    known = [(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    found = [_pair(line, where, own=own) for where, line in known]
    if not found:
        raise UserError(f"pairs {path} must hold a JSON object on each line, it is empty")
    return found


def _pair(line: str, where: str, *, own: bool) -> Pair:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} must be a JSON object: {error}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a JSON object, got {type(entry).__name__}")
    for key in _KEYS:
        if not isinstance(entry.get(key), str):
            raise UserError(f"{where} must have a text {key!r}, got {entry.get(key)!r}")
    if entry["chosen"] == entry["rejected"]:
        raise UserError(f"{where} must have two different answers, both are {entry['chosen']!r}")
    ids = entry.get("ids") if own else None
    prompt, chosen, rejected = (entry[key] for key in _KEYS)
    return Pair(prompt, chosen, rejected, None if ids is None else tuple(ids))
