# SPDX-License-Identifier: Apache-2.0
"""What a run would learn from, shown before it begins: `rlkern train --show 3`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from rlkern.trainer import build, preflight
from rlkern.trainer.data.render import Tokens
from rlkern.trainer.offline.pairs import Pair, given_pairs, of_file
from rlkern.trainer.offline.preferences import judged_rows, pair_rows
from rlkern.trainer.offline.supervised import right_answers
from rlkern.trainer.parts import Parts
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.text import prompt_ids
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.places import anchored, taken
from rlkern.trainer.settings.reads import DATA, SAMPLED
from rlkern.trainer.show.rendered import legend, rendered

Shown = tuple[str, Tokens]

_TURNS = (
    "what the environment says comes between the model's messages, so it cannot be shown before the"
    " run; it is read and does not count (--algorithm sft --show shows the turns of items that have"
    " a completion)"
)


def preview(settings: Settings, count: int, console: Console | None = None) -> None:
    """Print the first `count` examples of a run as its model reads them; nothing is written."""
    given, settings = settings, anchored(settings)
    world = World.start(settings.device)
    preflight.check(settings, world)
    parts = build.load(settings, world, None)
    if not world.is_main:
        return
    console = console or Console(highlight=False)
    for note in (*taken(given, settings), *parts.task.notes):
        console.print(Text(note), soft_wrap=True)
    legend(console, sampled=_sampled(settings))
    if _sampled(settings) and (parts.task.reply is not None or parts.task.begin is not None):
        console.print(Text(_TURNS), soft_wrap=True)
    for title, tokens in _examples(parts, count):
        rendered(console, parts.policy.tokenizer, title, tokens)


def _sampled(settings: Settings) -> bool:
    learns_from = settings.declared.learns_from
    judges = learns_from in ("pairs", "judged")
    return learns_from == "rollouts" or (judges and settings.pairs.source == SAMPLED)


def _examples(parts: Parts, count: int) -> Iterator[Shown]:
    settings, policy, task = parts.settings, parts.policy, parts.task
    if settings.declared.learns_from in ("pairs", "judged") and not _sampled(settings):
        yield from _preferences(parts, count)
        return
    items, _ = task.next_items(0, count)
    sampled = _sampled(settings)
    for number, item in enumerate(items, 1):
        where = f" ({item.row.where})" if item.row is not None else ""
        title = f"example {number}{where}"
        if sampled:
            ids = prompt_ids(policy.tokenizer, item.asked or "")[-task.keep :]
            right = f", right is {item.answer!r}" if item.answer else ""
            yield title + right, Tokens(ids, [], [])
        else:
            yield from ((title, each) for each in _tokens(right_answers(policy, [item], task)))


def _preferences(parts: Parts, count: int) -> Iterator[Shown]:
    given = given_pairs(parts.settings)
    if parts.settings.pairs.source == DATA:
        given = of_file(parts.task)
    assert given is not None  # sampled ones are shown by their prompts
    if given.judged:
        for number, judged in enumerate(given.judged[:count], 1):
            kind = "desirable" if judged.desirable else "undesirable"
            for each in _tokens(judged_rows(parts, [judged])):
                yield f"example {number}, {kind}", each
        return
    for number, pair in enumerate(given.train[:count], 1):
        for kind, each in zip(("chosen", "rejected"), _pair_tokens(parts, pair)):
            yield f"example {number}, {kind}", each


def _pair_tokens(parts: Parts, pair: Pair) -> list[Tokens]:
    whole = parts.settings.declared.trains != "policy"
    return _tokens(pair_rows(parts, [pair], whole=whole))


def _tokens(rows: Rows) -> list[Tokens]:
    """Returns rows as lists of ids, as the losses read them."""
    prompts = rows.prompt.repeat_interleave(rows.group_size, 0)
    masks = rows.prompt_mask.repeat_interleave(rows.group_size, 0)
    return [
        Tokens(prompt[known].tolist(), token[present].tolist(), counts[present].tolist())
        for prompt, known, token, present, counts in zip(
            prompts, masks, rows.token, rows.present, rows.mask, strict=True
        )
    ]
