# SPDX-License-Identifier: Apache-2.0
"""Settings that name a place on this machine."""

from __future__ import annotations

from pathlib import Path

from rlkern.runs import best
from rlkern.runs.folder import is_run
from rlkern.trainer.settings.schema import Settings

# Models that are found by their name, whatever folder there is.
_NAMES = ("tiny", "smollm2")


def anchored(settings: Settings) -> Settings:
    """Returns the settings with whole paths to the files and folders that they name and that are
    there, so that a run is resumed from any directory; a run that stands for a model is its best
    checkpoint."""
    data, pairs, reward = settings.data, settings.pairs, settings.reward
    files = {"train": _whole(data.train), "eval": _whole(data.eval)}
    functions = tuple(_model(name) for name in reward.functions)
    return settings.model_copy(
        update={
            "model": _model(settings.model),
            "teacher": _model(settings.teacher),
            "data": data.model_copy(update=files),
            "pairs": pairs.model_copy(update={"source": _whole(pairs.source)}),
            "reward": reward.model_copy(update={"functions": functions}),
        }
    )


def taken(given: Settings, found: Settings) -> list[str]:
    """Returns which checkpoint stands for each run that settings name as a model, of the settings
    as they were given and as `anchored` has them."""
    both = [
        ("model", given.model, found.model),
        ("teacher", given.teacher, found.teacher),
        *(("reward", *pair) for pair in zip(given.reward.functions, found.reward.functions)),
    ]
    return [
        f"{key} {name}: {best.label(Path(place))}"
        for key, name, place in both
        if name and place and _whole(name) != place
    ]


def _model(name: str | None) -> str | None:
    """Returns the whole path to a model, of a run that to a checkpoint of it."""
    if name is None or name in _NAMES or not is_run(Path(name)):
        return _whole(name)
    return _whole(str(best.chosen(Path(name))))


def _whole(name: str | None) -> str | None:
    if name is None or name in _NAMES or not Path(name).exists():
        return name
    return str(Path(name).absolute())
