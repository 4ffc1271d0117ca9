# SPDX-License-Identifier: Apache-2.0
"""Preference pairs: where they come from, which are held out, and how a run keeps them."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkern.runs.errors import UserError
from rlkern.runs.files import publish
from rlkern.trainer.data.chat import Answer, Prompt, prompt_of_json
from rlkern.trainer.data.files import Record, records
from rlkern.trainer.offline.statements import PROMPT, statements
from rlkern.trainer.rollout.text import Ids
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.reads import DATA, FACTS, SAMPLED
from rlkern.trainer.tasks.task import Task

# The folder of a run that holds its pairs, whatever their source, and its two files.
FOLDER, TRAIN, HELD_OUT = "pairs", "train.jsonl", "held_out.jsonl"
SUFFIX = ".jsonl"
_KEYS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer to it, and the tokens of all three if the answers
    were sampled: another text's tokens need not be those that a model wrote."""

    prompt: Prompt
    chosen: Answer
    rejected: Answer
    ids: tuple[list[int], list[int], list[int]] | None = None


@dataclass(frozen=True)
class Judgement:
    """A prompt with an answer to it that is desirable or not, and the tokens of both if the answer
    was sampled."""

    prompt: Prompt
    answer: Answer
    desirable: bool
    ids: Ids | None = None


@dataclass(frozen=True)
class Pairs:
    """The pairs a run learns from, and those it is only measured on; or answers that are judged by
    themselves, of which there are no pairs."""

    train: list[Pair]
    held_out: list[Pair]
    judged: list[Judgement] = field(default_factory=list)
    judged_held_out: list[Judgement] = field(default_factory=list)

    def judgements(self) -> list[Judgement]:
        """Returns what is learned by one answer at a time: the two of every pair."""
        of_pairs = [
            Judgement(pair.prompt, text, desirable, ids)
            for pair in self.train
            for text, desirable, ids in zip(
                (pair.chosen, pair.rejected), (True, False), answer_ids(pair), strict=True
            )
        ]
        return self.judged or of_pairs


def answer_ids(pair: Pair) -> tuple[Ids | None, Ids | None]:
    """Returns the tokens of prompt and answer, of the chosen and of the rejected one, if they were
    sampled."""
    if pair.ids is None:
        return None, None
    prompt, chosen, rejected = pair.ids
    return (prompt, chosen), (prompt, rejected)


def check_source(settings: Settings) -> None:
    """Raises UserError, before a model is loaded, for pairs that are not there."""
    source = settings.pairs.source
    if source not in (SAMPLED, FACTS, DATA) and not source.endswith(SUFFIX):
        raise UserError(
            f"pairs.source must be sampled, data, facts or a .jsonl file, got {source!r}"
        )
    given_pairs(settings)


def of_file(task: Task) -> Pairs:
    """Returns the pairs that the rows of data.train are, or the answers judged by themselves."""
    rows = [[item.row for item in part if item.row] for part in (task.rows or (), task.held_out)]
    pairs = [
        [Pair(x.prompt, x.target, x.rejected) for x in part if x.prompt and x.target and x.rejected]
        for part in rows
    ]
    judged = [
        [
            Judgement(x.prompt, x.target, x.label)
            for x in part
            if x.prompt and x.target and x.label is not None
        ]
        for part in rows
    ]
    for part in judged if not pairs[0] else ():
        if len({each.desirable for each in part}) < 2:
            raise UserError(
                f"data.train {task.name} must have true and false labels, among the rows to learn"
                f" from and among the held-out ones, got {len(part)} of one kind; give more rows,"
                " raise eval.items, or give a data.eval"
            )
    return Pairs(pairs[0], pairs[1], judged[0], judged[1])


def given_pairs(settings: Settings) -> Pairs | None:
    """Returns the pairs of a source that needs no model, split by the seed; None for sampled ones
    and for those of data.train, which are the task's."""
    source, prompts = settings.pairs.source, settings.batch.prompts
    if source in (SAMPLED, DATA):
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
    return Pairs(read(folder / TRAIN, own=True), read(folder / HELD_OUT, own=True))


def read(path: Path, *, own: bool = False) -> list[Pair]:
    """Returns the pairs of a file, one JSON object per line with prompt, chosen and rejected, and
    with ids in a file of the run's own; Raises UserError, which names the line, for anything else.
    Other keys are not read."""
    return [_pair(record, own=own) for record in records(path, "pairs.source")]


def _pair(record: Record, *, own: bool) -> Pair:
    where, entry = record
    prompt, chosen, rejected = (entry.get(key) for key in _KEYS)
    kept = isinstance(prompt, dict) and {"messages", "tools", "text"} <= {*prompt}
    for key, value in zip(_KEYS, (prompt, chosen, rejected)):
        if not isinstance(value, str) and not (kept and value is prompt):
            raise UserError(
                f"{where} must have a text {key!r}, got {value!r:.60} (data.train takes messages)"
            )
    if chosen == rejected:
        raise UserError(f"{where} must have two different answers, both are {chosen!r}")
    ids = entry.get("ids") if own else None
    known = None if ids is None else (ids[0], ids[1], ids[2])
    return Pair(prompt_of_json(prompt), str(chosen), str(rejected), known)
