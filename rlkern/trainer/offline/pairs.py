# SPDX-License-Identifier: Apache-2.0
"""Preference pairs: where they come from, which are held out, and how a run keeps them."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.offline.statements import PROMPT, statements
from rlkern.trainer.rollout.collect import generate, rewarded
from rlkern.trainer.run.files import publish
from rlkern.trainer.tasks.task import Item

if TYPE_CHECKING:
    from rlkern.trainer.session import Session

# The folder of a run that holds its pairs, whatever their source, and its two files.
FOLDER, TRAIN, HELD_OUT = "pairs", "train.jsonl", "held_out.jsonl"
SAMPLED, FACTS, SUFFIX = "sampled", "facts", ".jsonl"
_KEYS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer to it."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Pairs:
    """The pairs a run learns from, and those it is only measured on."""

    train: list[Pair]
    held_out: list[Pair]


def check_source(config: Config) -> None:
    """Returns nothing; raises one sentence, before a model is loaded, for pairs that are not
    there."""
    if config.pairs not in (SAMPLED, FACTS) and not config.pairs.endswith(SUFFIX):
        raise UserError(f"pairs must be sampled, facts or a .jsonl file, got {config.pairs!r}")
    given_pairs(config)


def given_pairs(config: Config) -> Pairs | None:
    """Returns the pairs of a source that needs no model, split by the seed; None for sampled
    ones."""
    if config.pairs == SAMPLED:
        return None
    if config.pairs == FACTS:
        every = [Pair(PROMPT, true, false) for true, false in statements()]
    else:
        every = read(Path(config.pairs))
    held = min(config.eval_items, len(every) // 5)
    if held < 1 or len(every) - held < config.prompts:
        raise UserError(
            f"pairs {config.pairs} must leave a batch of {config.prompts} (prompts) beside a fifth"
            f" that is held out, got {len(every)} pairs; lower prompts or give more pairs"
        )
    random.Random(f"{config.seed}/pairs").shuffle(every)
    return Pairs(every[held:], every[:held])


def sampled_pairs(session: Session) -> Pairs:
    """Returns a pair of the model's own answers to each training and each held-out prompt that has
    answers which the reward tells apart."""
    config, task = session.config, session.task
    items, _ = task.next_items(0, config.pair_items)
    found = Pairs(_sample(session, items), _sample(session, task.held_out))
    if len(found.train) < config.prompts or not found.held_out:
        raise UserError(
            f"only {len(found.train)} of {len(items)} training prompts and {len(found.held_out)} of"
            f" {len(task.held_out)} held-out ones had both a better and a worse answer among"
            f" {config.group_size}; raise pair_items or group_size, or start from a model that is"
            " right now and then (sft_steps, model)"
        )
    return found


def _sample(session: Session, items: list[Item]) -> list[Pair]:
    G = session.config.group_size
    at_once, found = max(1, session.config.eval_batch // G), list[Pair]()
    for first in range(0, len(items), at_once):
        part = items[first : first + at_once]
        rollout = generate(session, session.policy, part, session.sampling, G)
        ended = (torch.isin(rollout.token, session.sampling.stop) & rollout.mask).any(-1).tolist()
        experience = rewarded(session, part, rollout)
        reward = experience.scored.reward.tolist()
        for q, item in enumerate(part):
            # No text tells where an answer that was cut off would have ended, so it is no example.
            rows = [b for b in range(q * G, q * G + G) if ended[b] and reward[b] == reward[b]]
            if rows:
                best, worst = max(rows, key=reward.__getitem__), min(rows, key=reward.__getitem__)
                text = experience.completions
                if reward[best] > reward[worst] and text[best] != text[worst]:
                    found.append(Pair(item.prompt, text[best], text[worst]))
    return found


def write(pairs: Pairs, run: Path) -> None:
    """Write the pairs into the run, both files or none."""

    def fill(folder: Path) -> None:
        for name, part in ((TRAIN, pairs.train), (HELD_OUT, pairs.held_out)):
            lines = [json.dumps(dataclasses.asdict(pair)) + "\n" for pair in part]
            (folder / name).write_text("".join(lines), encoding="utf-8")

    publish(run / FOLDER, fill)


def kept_pairs(run: Path) -> Pairs | None:
    """Returns the pairs that a run keeps, None if it has none yet."""
    folder = run / FOLDER
    return Pairs(read(folder / TRAIN), read(folder / HELD_OUT)) if folder.is_dir() else None


def read(path: Path) -> list[Pair]:
    """Returns the pairs of a file, one JSON object a line with prompt, chosen and rejected; raises
    one sentence that names the first line that is none. Other keys are not read."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"pairs {path} cannot be read: {error}") from error
    found = [_pair(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"pairs {path} must hold a JSON object on each line, it is empty")
    return found


def _pair(line: str, where: str) -> Pair:
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
    return Pair(*(entry[key] for key in _KEYS))
