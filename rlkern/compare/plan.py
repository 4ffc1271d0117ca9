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

from rlkern.algorithms import declarations
from rlkern.runs.errors import UserError
from rlkern.runs.folder import name_of
from rlkern.runs.settings.layers import dotted, normalized
from rlkern.runs.settings.names import nearest
from rlkern.runs.settings.yaml_file import read
from rlkern.trainer import preflight
from rlkern.trainer.processes.world import World
from rlkern.trainer.settings import Layer, Settings, changed, dump, resolve
from rlkern.trainer.settings.resolve import laid, resolved

START = "start"
# Keys of runs that a comparison sets itself, and by which of its own.
_ITS_OWN = {
    "algorithm": "algorithms", "seed": "seeds", "model": "start.model", "sft": "start.sft",
    "name": "runs_dir", "output.dir": "runs_dir",
}  # fmt: skip
# Keys that say where a run is kept, not what it computes.
_PLACES = ("name", "output.dir", "model")


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
    recipes     folder that holds a file <algorithm>.yaml for `rlkern train` for each algorithm, of
                which all counts but the supervised stage; none has the default settings. A recipe
                with `stages` is a pipeline, which starts and ends as it says itself
    shared      keys of every run, over those of its recipe
    pipelines   by name, a pipeline's YAML file, of which the last stage is kept; it starts and
                ends as that file says
    notes       by algorithm, a sentence that its page and the table show
    """

    algorithms: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    jobs: int = 1
    runs_dir: str = "runs/compare"
    records: str = "benchmarks/results/compare"
    out: str = "docs"
    start: dict[str, Any] = field(default_factory=dict)
    recipes: str = ""
    shared: dict[str, Any] = field(default_factory=dict)
    pipelines: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """One run: its folder, its settings, and what tells it from a run with other settings.

    settings are those of the run that differ from its algorithm's own, by their dotted keys; run is
    all of them, which `rlkern train` is given; without it, it is given the file of a pipeline.
    """

    algorithm: str
    seed: int
    folder: Path
    settings: dict[str, Any]
    start: dict[str, Any]
    run: Settings | None = None
    file: str = ""

    @property
    def label(self) -> str:
        """Returns the name of what is recorded of this run."""
        return f"{self.algorithm}-{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """Returns what follows `rlkern train`; settings lie beside the folder."""
        if self.run is not None:
            return ["--config", f"{self.folder}.yaml"]
        place = ["--output.dir", str(self.folder.parent), "--name", self.folder.name]
        return ["--config", self.file, "--seed", str(self.seed), *place]

    @property
    def stages(self) -> list[Path]:
        """Returns the run directories of the stages of a pipeline that ran, in their order."""
        found = [p for p in self.folder.glob("*-*") if p.name.split("-", 1)[0].isdecimal()]
        return sorted(found, key=lambda path: int(path.name.split("-", 1)[0]))

    @property
    def measured(self) -> Path:
        """Returns the run directory whose metrics count: that of the last stage of a pipeline."""
        return self.folder if self.run is not None else self.stages[-1]


def load(path: str | os.PathLike) -> Comparison:
    """Returns the comparison that a YAML file describes."""
    values = read(path, "a comparison")
    known = {f.name: f.type for f in dataclasses.fields(Comparison)}
    if unknown := sorted(set(values) - set(known)):
        keys = ", ".join(known)
        raise UserError(
            f"{path}: unknown key {unknown[0]!r}{nearest(unknown[0], known)}; a comparison takes"
            f" {keys}"
        )
    for key, value in values.items():
        kind = str(known[key]).partition("[")[0]
        if type(value).__name__ != kind or not _of_texts(value, str(known[key])):
            raise UserError(f"{path}: {key} must be {_article(str(known[key]))}, got {value!r}")
    comparison = Comparison(**values)
    _check_read(comparison, str(path))
    return comparison


def _of_texts(value: Any, kind: str) -> bool:
    parts = {"list[str]": list, "dict[str, str]": lambda pairs: [*pairs, *pairs.values()]}
    return kind not in parts or all(isinstance(part, str) for part in parts[kind](value))


def _article(kind: str) -> str:
    words = {
        "int": "a whole number", "str": "text", "list[str]": "a list of texts",
        "dict[str, str]": "key: value lines of texts",
    }  # fmt: skip
    return words.get(kind, "a list" if kind.startswith("list") else "key: value lines")


def _check_read(comparison: Comparison, path: str) -> None:
    """Raises UserError for what a file gives and no run of it reads."""
    _check_names(comparison)
    if comparison.algorithms and comparison.pipelines:
        raise UserError(
            f"{path}: pipelines are run beside all algorithms, not beside some; leave algorithms or"
            " pipelines out"
        )
    for where, given, own in (
        ("start", comparison.start, ("seed", "name", "output.dir")),
        ("shared", comparison.shared, tuple(_ITS_OWN)),
    ):
        for key in dotted(Settings, normalized(Settings, Layer(f"{path}, {where}", given))):
            found = next((name for name in own if f"{key}.".startswith(f"{name}.")), None)
            if found is not None:
                raise UserError(
                    f"{path}, {where}: a comparison sets {key} itself, by {_ITS_OWN[found]}; leave"
                    " it out"
                )
    left = [each for name in _names(comparison) if (each := _unread(comparison, name)) is not None]
    if left and (unread := sorted(frozenset.intersection(*left))):
        raise UserError(f"{path}, shared: {unread[0]} is not read by any algorithm; leave it out")


def _unread(comparison: Comparison, name: str) -> frozenset[str] | None:
    """Returns the shared keys that an algorithm does not read; None if a pipeline is its recipe."""
    if _stages_of(comparison, name):
        return None
    recipe = Layer(f"recipe of {name}", {**_recipe(comparison, name), "algorithm": name})
    found = laid(recipe, Layer("shared", comparison.shared, shared=True), Layer("", {"sft": None}))
    return frozenset(key for _, key in found.left)


def _names(comparison: Comparison) -> list[str]:
    return comparison.algorithms or list(declarations())


def _check_names(comparison: Comparison) -> None:
    for name in [*_names(comparison), *comparison.notes]:
        if name not in declarations():
            raise UserError(f"there is no algorithm {name!r}{nearest(name, declarations())}")
    for key, values in (("algorithms", comparison.algorithms), ("seeds", comparison.seeds)):
        if len(set(values)) < len(values):
            raise UserError(f"{key} must differ from each other, got {values}")


def own(settings: Settings) -> dict[str, Any]:
    """Returns what differs from the algorithm's own settings and matters for what is computed.

    >>> from rlkern.trainer.settings import of
    >>> own(of(steps=7, output="elsewhere"))
    {'algorithm': 'grpo', 'steps': 7}
    """
    kind = {"algorithm": settings.algorithm, "model": settings.model}
    plain = dotted(Settings, dump(laid(Layer("", kind)).settings))
    found = {k: v for k, v in dotted(Settings, dump(settings)).items() if k not in _PLACES}
    return {k: v for k, v in found.items() if k == "algorithm" or plain.get(k) != v}


def _named(base: str, settings: dict[str, Any], start: dict[str, Any]) -> str:
    """Returns a folder name that other settings do not share."""
    text = json.dumps([settings, start], sort_keys=True)
    return f"{base}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def starts(comparison: Comparison) -> dict[int, Planned]:
    """Returns by seed the run whose supervised stage every algorithm starts after."""
    found, source = {}, "start of the comparison"
    for seed in comparison.seeds:
        run = resolve(Layer(source, comparison.start), Layer("seeds", {"seed": seed}))
        settings = {**own(run), "model": run.model}
        folder = Path(comparison.runs_dir) / _named(f"{START}-{seed}", settings, {})
        if run.sft is None:
            raise UserError(f"{source} must set sft.steps to 1 or more")
        preflight.check(run, World())
        placed = changed(run, name=folder.name, output={"dir": comparison.runs_dir})
        found[seed] = Planned(START, seed, folder, settings, {}, placed)
    return found


def runs(comparison: Comparison) -> list[Planned]:
    """Returns all runs of a comparison, those of one algorithm after another; checks them all."""
    _check_names(comparison)
    names = _names(comparison)
    first, seeds = starts(comparison), comparison.seeds
    found = [_of_recipe(comparison, name, first[seed]) for name in names for seed in seeds]
    wanted = {} if comparison.algorithms else comparison.pipelines
    for name in wanted:
        if name in declarations():
            raise UserError(f"pipelines must not be called as an algorithm is, got {name!r}")
    return found + [_pipeline(comparison, *one, seed) for one in wanted.items() for seed in seeds]


def _of_recipe(comparison: Comparison, name: str, start: Planned) -> Planned:
    """Returns the run of an algorithm's own file: from the start, or of all its stages."""
    if path := _stages_of(comparison, name):
        return _pipeline(comparison, name, path, start.seed)
    return _run(comparison, name, start)


def _stages_of(comparison: Comparison, name: str) -> str:
    """Returns the file of an algorithm if it is a pipeline, else nothing."""
    path = Path(comparison.recipes) / f"{name}.yaml"
    found = comparison.recipes and path.is_file() and "stages" in read(path, "a recipe")
    return str(path) if found else ""


def _run(comparison: Comparison, name: str, start: Planned) -> Planned:
    assert start.run is not None
    # The start is not made yet; all else of the settings is refused before anything runs.
    run = resolved(
        Layer(f"recipe of {name}", {**_recipe(comparison, name), "algorithm": name}),
        Layer("shared", comparison.shared, shared=True),
        Layer("seeds", {"seed": start.seed, "sft": None, "model": start.run.model}),
    ).settings
    preflight.check(run, World())
    settings = own(run)
    folder = Path(comparison.runs_dir) / _named(f"{name}-{start.seed}", settings, start.settings)
    place = {"model": str(start.folder / name_of(0)), "name": folder.name}
    placed = changed(run, **place, output={"dir": comparison.runs_dir})
    return Planned(name, start.seed, folder, settings, start.settings, placed)


def _recipe(comparison: Comparison, name: str) -> dict[str, Any]:
    """Returns what an algorithm's own file sets; the supervised stage is the start's."""
    if not comparison.recipes:
        return {}
    path = Path(comparison.recipes) / f"{name}.yaml"
    values = read(path, "a recipe")
    if values.get("algorithm") != name:
        raise UserError(f"{path}: algorithm must be {name}, got {values.get('algorithm')!r}")
    values.pop("sft", None)
    return values


def _pipeline(comparison: Comparison, name: str, file: str, seed: int) -> Planned:
    """Returns the run of a pipeline; its settings are its file's."""
    settings = read(file, "a pipeline")
    if "stages" not in settings:
        raise UserError(f"{file} must hold a pipeline, whose key stages lists its runs")
    folder = Path(comparison.runs_dir) / _named(f"{name}-{seed}", settings, {"seed": seed})
    return Planned(name, seed, folder, settings, {}, file=file)
