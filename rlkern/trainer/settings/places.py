# SPDX-License-Identifier: Apache-2.0
"""Settings that name a place on this machine."""

from __future__ import annotations

from pathlib import Path

from rlkern.trainer.settings.schema import Settings

# Models that are found by their name, whatever folder there is.
_NAMES = ("tiny", "smollm2")


def anchored(settings: Settings) -> Settings:
    """Returns the settings with whole paths to the files and folders that they name and that are
    there, so that a run is resumed from any directory."""
    data, pairs, reward = settings.data, settings.pairs, settings.reward
    files = {"train": _whole(data.train), "eval": _whole(data.eval)}
    functions = tuple(_whole(name) for name in reward.functions)
    return settings.model_copy(
        update={
            "model": _whole(settings.model),
            "teacher": _whole(settings.teacher),
            "data": data.model_copy(update=files),
            "pairs": pairs.model_copy(update={"source": _whole(pairs.source)}),
            "reward": reward.model_copy(update={"functions": functions}),
        }
    )


def _whole(name: str | None) -> str | None:
    if name is None or name in _NAMES or not Path(name).exists():
        return name
    return str(Path(name).absolute())
