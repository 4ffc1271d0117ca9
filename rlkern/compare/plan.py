# SPDX-License-Identifier: Apache-2.0
"""What a comparison runs: every algorithm with every seed, from one start, under one budget."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlkern.trainer.checkpoint import name_of
from rlkern.trainer.config import Config, from_dict
from rlkern.trainer.errors import UserError
from rlkern.trainer.session import check
from rlkern.trainer.settings import find_algorithm, known_algorithms

START = "start"
# Keys that say where a run is kept, not what it computes.
_PLACES = ("name", "runs_dir", "model")


@dataclass
class Comparison:
    """Settings of `rlkern compare`; each is a key of its YAML file.

    algorithms  names; none stands for every registered one
    seeds       one run for each algorithm and seed
    jobs        runs at a time, each with one thread
    runs_dir    folder of the run directories
    records     folder of the JSON lines that are kept of each run
    out         folder of the pages: algorithms.md and algorithms/
    start       keys of `rlkern train` for the run, one for each seed, after whose supervised
                stage every algorithm starts
    shared      keys of every run
    learning    keys by what an algorithm learns from: rollouts, answers, pairs or judged
    own         keys by algorithm, over all of these
    notes       by algorithm, a sentence that its page and the table show
    """

    algorithms: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    jobs: int = 1
    runs_dir: str = "runs/compare"
    records: str = "benchmarks/results/compare"
    out: str = "docs"
    start: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    learning: dict[str, dict[str, Any]] = field(default_factory=dict)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """One run: its settings, and what tells it from a run with other settings."""

    algorithm: str
    seed: int
    config: Config
    settings: dict[str, Any]
    start: dict[str, Any]

    @property
    def label(self) -> str:
        """Returns the name of what is recorded of this run."""
        return f"{self.algorithm}-{self.seed}"


def load(path: str | os.PathLike) -> Comparison:
    """Returns the comparison that a YAML file describes."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a comparison: {error}") from error
    known = {f.name: f.type for f in dataclasses.fields(Comparison)}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold key: value lines, got {type(values).__name__}")
    if unknown := sorted(set(values) - set(known)):
        keys = ", ".join(known)
        raise UserError(f"{path}: unknown key {unknown[0]!r}; a comparison takes {keys}")
    for key, value in values.items():
        kind = str(known[key]).partition("[")[0]
        if type(value).__name__ != kind:
            raise UserError(f"{path}: {key} must be {_article(kind)}, got {value!r}")
    return Comparison(**values)


def _article(kind: str) -> str:
    return {"int": "a whole number", "str": "text", "list": "a list"}.get(kind, "key: value lines")


def changed(config: Config) -> dict[str, Any]:
    """Returns the settings that differ from the defaults and matter for what is computed.

    >>> changed(Config(steps=7, runs_dir="elsewhere"))
    {'steps': 7}
    """
    default, own = dataclasses.asdict(Config()), dataclasses.asdict(config)
    return {k: v for k, v in own.items() if k not in _PLACES and v != default[k]}


def _named(base: str, settings: dict[str, Any], start: dict[str, Any]) -> str:
    """Returns a folder name that other settings do not share."""
    text = json.dumps([settings, start], sort_keys=True)
    return f"{base}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def starts(comparison: Comparison) -> dict[int, Planned]:
    """Returns by seed the run whose supervised stage every algorithm starts after."""
    found = {}
    for seed in comparison.seeds:
        config = from_dict({**comparison.start, "seed": seed}, "start of the comparison")
        settings = {**changed(config), "model": config.model}
        config.runs_dir, config.name = comparison.runs_dir, _named(f"{START}-{seed}", settings, {})
        if not config.sft_steps:
            raise UserError("start of the comparison must set sft_steps to 1 or more")
        check(config)
        found[seed] = Planned(START, seed, config, settings, {})
    return found


def runs(comparison: Comparison) -> list[Planned]:
    """Returns all runs of a comparison, those of one algorithm after another; checks them all."""
    names = comparison.algorithms or list(known_algorithms())
    for name in [*names, *comparison.own, *comparison.notes]:
        find_algorithm(name)
    kinds = {one.learns_from for one in known_algorithms().values()}
    for kind in comparison.learning:
        if kind not in kinds:
            raise UserError(f"learning must be by one of {', '.join(sorted(kinds))}, got {kind!r}")
    if len(set(comparison.seeds)) < len(comparison.seeds):
        raise UserError(f"seeds must differ from each other, got {comparison.seeds}")
    first = starts(comparison)
    return [_run(comparison, name, first[seed]) for name in names for seed in comparison.seeds]


def _run(comparison: Comparison, name: str, start: Planned) -> Planned:
    data = find_algorithm(name).learns_from
    values = {**comparison.shared, **comparison.learning.get(data, {})}
    values = {**values, **comparison.own.get(name, {})}
    given = {"algorithm": name, "seed": start.seed, "sft_steps": 0}
    config = from_dict({**values, **given}, "the comparison")
    settings = changed(config)
    folder = Path(comparison.runs_dir)
    config.model = str(folder / str(start.config.name) / name_of(0))
    config.runs_dir = comparison.runs_dir
    config.name = _named(f"{name}-{start.seed}", settings, start.settings)
    # The start is not made yet; all else of the settings is refused before anything runs.
    check(dataclasses.replace(config, model=start.config.model))
    return Planned(name, start.seed, config, settings, start.settings)
