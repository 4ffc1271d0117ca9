# SPDX-License-Identifier: Apache-2.0
"""Examples as the model reads them: the rendered text, its tokens, and which of them count."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from rlkern.trainer.data.render import Tokens

# By whether a token counts; None is a token of the prompt.
_STYLES = {None: "cyan", True: "bold green", False: "yellow"}
_NAMES = {None: "the prompt", True: "what is learned", False: "what is only read"}


def legend(console: Console, *, sampled: bool) -> None:
    """Print what the colours mean; of prompts whose answers are sampled only theirs."""
    kinds = (None,) if sampled else (None, True, False)
    line = Text("colours: ").append_text(
        Text(", ").join(Text(_NAMES[kind], style=_STYLES[kind]) for kind in kinds)
    )
    console.print(line.append("; ids that are learned are in brackets" if not sampled else ""))


def rendered(console: Console, tokenizer: Any, title: str, given: Tokens) -> None:
    """Print one example under a title: its text in colours, then its ids."""
    every: list[tuple[int, bool | None]] = [(i, None) for i in given.prompt]
    every += list(zip(given.answer, given.counts, strict=True))
    text, ids = Text(), Text("ids: ", style="dim")
    for kind, run in groupby(every, key=lambda pair: pair[1]):
        some = [i for i, _ in run]
        # Of a few bytes of a character alone no text can be made, so a run is decoded as a whole.
        text.append(tokenizer.decode(some).replace("\n", "↵\n"), style=_STYLES[kind])
        words = " ".join(map(str, some))
        ids.append(f"[{words}] " if kind else f"{words} ", style=_STYLES[kind])
    counted = sum(given.counts)
    lengths = f"{len(given.prompt)} tokens of prompt"
    if given.answer:
        lengths += f", {counted} learned of {len(given.answer)} after it"
    console.print(Text(f"{title}: {lengths}", style="bold"), soft_wrap=True)
    console.print(text, soft_wrap=True)
    console.print(ids, soft_wrap=True)
