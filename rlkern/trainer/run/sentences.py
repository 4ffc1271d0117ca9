# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself where it stops and where it goes on."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from rlkern.runs.folder import CONFIG, all_checkpoints
from rlkern.trainer.parts import Parts
from rlkern.trainer.run.checkpoint import SUPERVISED
from rlkern.trainer.settings import Settings


def how_to_go_on(folder: Path, *, flags: str = "") -> str:
    """Returns what is kept of a run, and the command that goes on with it."""
    if not (folder / CONFIG).is_file():
        return "the run had not begun"
    saved = all_checkpoints(folder)
    kept = f"{saved[-1].name} is whole" if saved else "no checkpoint was saved yet"
    if not saved and (folder / SUPERVISED).is_dir():
        kept = "what was done of the supervised start is kept"
    return f"{kept}, go on with: rlkern train --resume {folder}{flags}"


def out_of_time(folder: Path, step: int, steps: int, what: str) -> str:
    """Returns what is said of a run, or its supervised start, that max_seconds ends."""
    ended = f"max_seconds ended the {what} after step {step} of {steps}"
    return f"{ended}; {how_to_go_on(folder, flags=' --max_seconds 0')}"


def say_finished(parts: Parts, folder: Path, say: Callable[[str], None]) -> None:
    """Says that a run that is resumed has taken all of its steps, if it has."""
    settings = parts.settings
    if parts.progress.step < settings.steps:
        return
    decays = settings.optimizer.decay is not None
    more = "more are taken with a larger --steps"
    if decays:
        more = "its learning rate has decayed by them, so it takes no more"
    say(f"{folder} has taken all of its {settings.steps} steps; {more}")


def out_of_memory(settings: Settings, error: BaseException, folder: Path) -> str:
    """Returns what is said of a run that has no memory left: where, and the three keys that help,
    those first that change no result."""
    names = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    place = next((p for p, part in _PLACES.items() if any(part in n for n in names)), "learning")
    batch, halved = settings.batch, max(1, settings.eval.batch // 2)
    fewer = f"--batch.prompts {max(1, batch.prompts // 2)}"
    pieces = f"--batch.micro_batches {min(batch.prompts, 2 * batch.micro_batches)}"
    shorter = "a smaller --rollout.max_new_tokens"
    ways = {
        "evaluating": (f"--eval.batch {halved}", shorter, "--dtype bfloat16"),
        "sampling": (fewer, shorter, "--dtype bfloat16"),
        "learning": (pieces, "--memory.gradient_checkpointing true", fewer),
    }[place]
    flags = f" {ways[0]}" if place != "sampling" else ""
    return (
        f"out of memory while {place}; what helps, in this order: {', '.join(ways)};"
        f" {how_to_go_on(folder, flags=flags)}"
    )


# By the file that an error came through; evaluation samples too, so it is looked for first.
_PLACES = {"evaluating": "/trainer/evaluate.py", "sampling": "/trainer/rollout/sampler.py"}
