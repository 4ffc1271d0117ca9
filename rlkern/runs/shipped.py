# SPDX-License-Identifier: Apache-2.0
"""The YAML files that come with rlkern, `configs/` of its sources."""

from __future__ import annotations

from pathlib import Path

FOLDER = "configs"
_PACKAGE = Path(__file__).resolve().parents[1]
# In the package, or beside it where rlkern is used out of its sources.
_PLACES = (_PACKAGE / FOLDER, _PACKAGE.parent / FOLDER)


def config_file(name: str) -> Path:
    """Returns the file that a person names: one that is there, else the one of that name that comes
    with rlkern, else the name as it is.

    >>> config_file("tiny_addition.yaml").name, config_file("configs/algorithms/ppo.yaml").name
    ('tiny_addition.yaml', 'ppo.yaml')
    """
    path = Path(name)
    if path.is_file() or path.is_absolute():
        return path
    within = path.relative_to(FOLDER) if path.parts[:1] == (FOLDER,) else path
    return next((place / within for place in _PLACES if (place / within).is_file()), path)
