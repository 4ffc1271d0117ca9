# SPDX-License-Identifier: Apache-2.0
"""From what people give to the settings of a run of one classic algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from rlkern.control.algorithms import algorithms
from rlkern.control.declaration import ControlAlgorithm
from rlkern.control.group import Settings
from rlkern.runs.errors import UserError
from rlkern.runs.folder import check_name
from rlkern.runs.settings.layers import (
    Layer,
    first_difference,
    given_of,
    laid_over,
    leaves,
    normalized,
    placed,
)
from rlkern.runs.settings.message import first_problem
from rlkern.runs.settings.names import nearest

__all__ = [
    "FREE", "RESUMABLE", "Layer", "Settings", "declared", "differing", "of", "other_keys",
    "resolve", "root_of",
]  # fmt: skip

_DEFAULT = Settings.model_fields["algorithm"].default
# Mappings whose keys are not known here.
FREE = ("env_options",)
# Keys that may change when a run is resumed: none of them alters what an earlier step computed.
RESUMABLE = frozenset(
    "name output_dir log log_every eval_every eval_episodes eval_length save_every max_seconds"
    " threads".split()
)


def root_of(arguments: Sequence[str]) -> type[Settings]:
    """Returns the settings class of the algorithm that a command line names, or of the default;
    Raises UserError for one that does not exist.

    >>> root_of(["--algorithm=q_learning"]).__name__, root_of([]).__name__
    ('TabularSettings', 'PPOSettings')
    """
    words = [word for each in arguments for word in each.split("=", 1)]
    pairs = dict(zip(words, words[1:]))
    return _named(pairs.get("--algorithm", _DEFAULT)).settings


def other_keys(root: type[Settings]) -> list[str]:
    """Returns the keys that only other algorithms read, such as that of a file."""
    every = (key for each in algorithms().values() for key, _ in leaves(each.settings))
    return [key for key in dict.fromkeys(every) if key not in root.model_fields]


def _named(name: Any) -> ControlAlgorithm:
    known = algorithms()
    if not isinstance(name, str) or name not in known:
        close = nearest(str(name), known)
        raise UserError(
            f"there is no algorithm {name!r}{close} (rlkern control --list shows {len(known)})"
        )
    return known[name]


def declared(settings: Settings) -> ControlAlgorithm:
    """Returns the declaration of the algorithm of a run."""
    return algorithms()[settings.algorithm]


def resolve(*layers: Layer) -> Settings:
    """Returns the settings of layers, later ones over earlier ones, all of them over the
    algorithm's defaults and its recipe for the environment. Raises UserError for a key that the
    algorithm does not read, or a value that it does not take.
    """
    plain = laid_over(*(dict(layer.values) for layer in layers))
    name = _DEFAULT if plain.get("algorithm") is None else plain["algorithm"]
    own, root = _named(name), _named(name).settings
    given = [(layer, normalized(root, layer)) for layer in layers]
    merged = given_of(root, laid_over(*(values for _, values in given)))
    env = merged.get("env", root.model_fields["env"].default)
    recipe = dict(own.recipes.get(env, {}))
    try:
        settings = root.model_validate({**laid_over(recipe, merged), "algorithm": name})
        if settings.name is not None:
            check_name(settings.name)
        return settings
    except ValidationError as error:
        path, sentence = first_problem(error, root, [key for key, _ in leaves(root)])
        others = [
            each.name for each in algorithms().values() if path[-1] in each.settings.model_fields
        ]
        if path[-1] not in root.model_fields and others:
            verb = "does" if len(others) == 1 else "do"
            sentence = f"{name} does not read {path[-1]}; {', '.join(others)} {verb}"
        raise UserError(placed(sentence, path, given)) from None
    except UserError as error:
        raise UserError(placed(str(error), ("name",), given)) from None


def of(**values: Any) -> Settings:
    """Returns the settings of keyword arguments.

    >>> of(algorithm="q_learning", env="CliffWalking-v1").seed
    0
    """
    return resolve(Layer("", values))


def differing(settings: Settings, other: Settings) -> tuple[str, Any, Any] | None:
    """Returns (key, value, other value) of the first key that a resumed run may not change and that
    differs, or None."""
    free = RESUMABLE if other.steps_matter else RESUMABLE | {"steps"}
    return first_difference(settings.model_dump(mode="json"), other.model_dump(mode="json"), free)
