# SPDX-License-Identifier: Apache-2.0
"""From what people give to one immutable object: the only place where settings are made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rlkern.algorithms import BaseAlgorithm, declarations
from rlkern.runs.code import located, unplaced
from rlkern.runs.errors import UserError
from rlkern.runs.folder import check_name
from rlkern.runs.settings.layers import (
    Layer,
    dotted,
    first_difference,
    given_of,
    is_key,
    laid_over,
    normalized,
    placed,
    source_of,
)
from rlkern.runs.settings.message import first_problem
from rlkern.runs.settings.names import nearest
from rlkern.trainer.settings.contradictions import check_contradictions
from rlkern.trainer.settings.keys import every_key
from rlkern.trainer.settings.reads import DATA, Facts, facts, unread
from rlkern.trainer.settings.running import Sft
from rlkern.trainer.settings.schema import Settings

# Keys that may change when a run is resumed: none of them alters what an earlier step computed, and
# a later step only by how it rounds. Of the data a run records the content, which must stay the
# same wherever it lies. eval.items is not among them, because what is held out is not trained on,
# and eval.modes is not, because its first one decides which checkpoint is the best.
RESUMABLE = frozenset(
    "name device threads max_seconds data.train data.eval batch.micro_batches"
    " memory.share_prompts memory.gradient_checkpointing memory.length_bucket"
    " eval.every eval.samples eval.pass_at eval.batch eval.keep_best"
    " output.dir output.log output.log_every output.sample_every output.completions"
    " output.save_every output.keep_checkpoints"
    " loss.compare reward.degenerate_limit reward.timeout reward.workers".split()
)


@dataclass(frozen=True)
class Resolved:
    """Settings, and the keys of shared layers that this run does not read, by their sources."""

    settings: Settings
    left: frozenset[tuple[str, str]] = frozenset()


def resolve(*layers: Layer) -> Settings:
    """Returns the settings of layers, later ones over earlier ones, those over the algorithm's own,
    and these over the defaults.

    Raises UserError, with source, key, what is expected and what was given, for a key or value that
    does not exist, for a key that nothing of the run reads, and for a contradiction.

    >>> resolve(Layer("x.yaml", {"algorithm": "ppo", "batch": {"prompts": 4}})).batch.epochs
    4
    """
    found = resolved(*layers)
    if found.left:
        source, key = min(found.left)
        raise UserError(f"{source}: {key} is not read by {found.settings.algorithm}")
    return found.settings


def resolved(*layers: Layer) -> Resolved:
    """Returns the same as resolve; shared keys that are not read are left out and reported."""
    found = laid(*layers)
    check_contradictions(found.settings)
    return found


def laid(*layers: Layer) -> Resolved:
    """Returns the same as resolved, with whatever contradictions there are between keys."""
    given = [(layer, normalized(Settings, layer)) for layer in layers]
    merged = given_of(Settings, laid_over(*(values for _, values in given)))
    declared = _declared(merged, given)
    own = _own(declared, merged)
    everything = laid_over(own, merged)
    start = everything.get("sft")
    run = Facts(
        declared,
        str(everything.get("task", Settings.model_fields["task"].default)),
        str(_at(everything, "pairs.source") or Settings().pairs.source),
        start is not None,
        _at(everything, "data.train") is not None,
    )
    left = set()
    for key in dotted(Settings, merged):
        what, path = unread(key, run), tuple(key.split("."))
        # A key that does not exist is not one that somebody else reads.
        if what is None or not is_key(Settings, path):
            continue
        layer = source_of(path, given)
        assert layer is not None  # the key is in one of them
        if not layer.shared:
            raise UserError(f"{layer.source}: {key} is read by runs that {what}, {_fix(key, run)}")
        left.add((layer.source, key))
        _remove(everything, path)
    try:
        settings = Settings.model_validate(everything)
    except ValidationError as error:
        path, sentence = first_problem(error, Settings, every_key())
        raise UserError(placed(sentence, path, given)) from None
    if settings.name is not None:
        try:
            check_name(settings.name)
        except UserError as error:
            raise UserError(placed(str(error), ("name",), given)) from None
    return Resolved(_located(settings, given), frozenset(left))


def _located(settings: Settings, given: list[tuple[Layer, dict]]) -> Settings:
    """Returns the settings with the absolute paths of files of functions, so that they are found
    from any directory: relative ones are so to where one stands, or to the file of their key."""

    def beside(*path: str) -> str:
        layer = source_of(path, given)
        return "" if layer is None else layer.source.partition(", stage ")[0]

    reward = settings.reward
    functions = tuple(located(name, beside("reward", "functions")) for name in reward.functions)
    own = {
        "task": located(settings.task, beside("task")),
        "reward": reward.model_copy(update={"functions": functions}),
    }
    return settings.model_copy(update=own)


def _fix(key: str, run: Facts) -> str:
    """Returns why a run does not read a key, its algorithm or its data, and what to do."""
    others = (dataclasses.replace(run, declared=each) for each in declarations().values())
    if any(unread(key, other) is None for other in others):
        return (
            f"which algorithm {run.declared.name} does not; choose one that does (rlkern"
            f" algorithms), or leave {key} out"
        )
    return f"which this one does not; leave {key} out"


def _declared(merged: dict[str, Any], given: list[tuple[Layer, dict]]) -> BaseAlgorithm:
    name, known = (
        merged.get("algorithm", Settings.model_fields["algorithm"].default),
        declarations(),
    )
    if not isinstance(name, str) or name not in known:
        sentence = (
            f"there is no algorithm {name!r}{nearest(str(name), known)} (rlkern algorithms lists"
            f" {len(known)})"
        )
        raise UserError(placed(sentence, ("algorithm",), given))
    return known[name]


def _own(declared: BaseAlgorithm, merged: dict[str, Any]) -> dict[str, Any]:
    """Returns what the algorithm and the model say themselves."""
    coefficients: dict[str, Any] = dict(declared.defaults)
    own: dict[str, Any] = {**declared.settings, "coefficients": coefficients}
    if "kind" not in merged.get("groups", {}):
        own["groups.kind"] = declared.sampling
    if correction := merged.get("correction"):
        own["correction.kind"] = "mask" if "low" in correction else "truncate"
    file = _at(merged, "data.train") is not None
    if file and declared.learns_from in ("pairs", "judged"):
        own["pairs.source"] = DATA
    if merged.get("model", "tiny") == "tiny":
        # Random weights have to learn from examples first.
        own["optimizer.lr"] = 5e-4
        if not (file and declared.learns_from == "answers"):
            own["sft.steps"] = Sft().steps
    return normalized(Settings, Layer("the algorithm", own))


def _at(values: dict[str, Any], key: str) -> Any:
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _remove(values: dict[str, Any], path: tuple[str, ...]) -> None:
    for name in path[:-1]:
        values = values[name]
    values.pop(path[-1], None)


def of(**values: Any) -> Settings:
    """Returns the settings of keyword arguments, groups being mappings.

    >>> of(algorithm="grpo", optimizer={"lr": 1e-4}).optimizer.lr
    0.0001
    """
    return resolve(Layer("", values))


def changed(settings: Settings, **values: Any) -> Settings:
    """Returns the settings with other values, checked again."""
    return resolve(Layer("", dump(settings)), Layer("", values))


def dump(settings: Settings) -> dict[str, Any]:
    """Returns every key that the run reads, as nested mappings of plain values."""
    values, run = settings.model_dump(mode="json"), facts(settings)
    for key in dotted(Settings, values):
        if unread(key, run) is not None:
            _remove(values, tuple(key.split(".")))
    return {name: value for name, value in values.items() if value != {}}


def differing(settings: Settings, other: Settings) -> tuple[str, Any, Any] | None:
    """Returns (key, value, other value) of the first key that a resumed run may not change and that
    differs, or None."""
    free = RESUMABLE | ({"steps"} if settings.optimizer.decay is None else set())
    mine, others = (dotted(Settings, dump(each)) for each in (settings, other))
    found = first_difference(_by_content(mine), _by_content(others), free)
    return None if found is None else (found[0], mine.get(found[0]), others.get(found[0]))


def _by_content(values: dict[str, Any]) -> dict[str, Any]:
    """Returns settings without the places of files of code: of one that was moved the content says
    whether it is the same."""
    return {k: _unplaced(v) if k in ("reward.functions", "task") else v for k, v in values.items()}


def _unplaced(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    return [unplaced(name) if isinstance(name, str) else "" for name in names]
