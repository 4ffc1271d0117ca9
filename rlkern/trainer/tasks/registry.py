# SPDX-License-Identifier: Apache-2.0
"""The tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from rlkern.trainer.settings import Settings
from rlkern.trainer.tasks.addition import addition
from rlkern.trainer.tasks.file import file_task
from rlkern.trainer.tasks.guess import guess
from rlkern.trainer.tasks.own import own_task
from rlkern.trainer.tasks.reasoning import ARITHMETIC, reasoning
from rlkern.trainer.tasks.task import Task

# By the names of rlkern.trainer.settings.reads.OWN_TASKS; other names are reasoning-gym's.
OWN: dict[str, Callable[..., Task]] = {"addition": addition, "guess": guess}
_SUMS = "arithmetic"


def make_task(settings: Settings) -> Task:
    """Returns the task that the settings name, or that their file is; Raises UserError if there is
    none."""
    if settings.has_own_task:
        return own_task(settings)
    if settings.data.train is not None:
        return file_task(settings)
    name, seed, held_out = settings.task, settings.seed, settings.eval.items
    if name in OWN:
        return OWN[name](seed=seed, eval_items=held_out)
    data, sums = settings.data, name == _SUMS
    return reasoning(
        name,
        "basic_arithmetic" if sums else name,
        {**(ARITHMETIC if sums else {}), **data.options},
        seed=seed,
        eval_items=held_out,
        shots=int(sums) if data.shots is None else data.shots,
        template=data.template or ("{expression} = " if sums else "Q: {question}\nA: "),
    )
