# SPDX-License-Identifier: Apache-2.0
"""`rlkern train`: flags over a YAML file over the defaults; one run, or a pipeline's stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkern.cli.guard import guarded, silence_hub, underscored

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from rlkern.trainer.config import Config

_PRINT = "--print_config"


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern train`."""
    return guarded("train", lambda: _parse_and_train(arguments))


def _parse_and_train(arguments: list[str]) -> int:
    from jsonargparse import ArgumentError

    from rlkern.trainer.errors import UserError
    from rlkern.trainer.pipeline import is_pipeline

    words, resume, folder = _take_resume([underscored(word) for word in arguments])
    try:
        if folder is not None and is_pipeline(folder):
            return _go_on(words, folder)
        file, rest = _take_config(words)
        document = _document(file) if file else None
        if file and document is not None and "stages" in document:
            return _pipeline(document, file, rest, resume=resume)
        return _one_run(words, folder, resume=resume)
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error


def _one_run(words: list[str], folder: Path | None, *, resume: bool) -> int:
    from rlkern.trainer.settings import validate

    config = _parse(words, folder)
    if config is None:
        return 0
    validate(config)
    from rlkern.trainer.loop import train

    silence_hub()
    train(config, resume=resume)
    return 0


def _pipeline(document: dict[str, Any], file: str, words: list[str], *, resume: bool) -> int:
    """Returns 0 after all stages of a YAML file have run."""
    from rlkern.trainer.pipeline import layered, run_pipeline
    from rlkern.trainer.settings import check_name

    flags = _given(words)
    if flags is None:
        return 0
    configs = [_config(values) for values in layered(document, flags, file)]
    if _PRINT in words:
        return _print_stages(configs)
    name = flags.get("name") or document.get("name") or Path(file).stem
    check_name(name)
    silence_hub()
    run_pipeline(Path(configs[0].runs_dir) / name, configs, resume=resume)
    return 0


def _go_on(words: list[str], folder: Path) -> int:
    """Returns 0 after the stages of a pipeline that has begun have run to the end."""
    from rlkern.trainer.pipeline import run_pipeline, saved_configs

    flags = _given(words)
    if flags is None:
        return 0
    configs = [_config({**dataclasses.asdict(saved), **flags}) for saved in saved_configs(folder)]
    if _PRINT in words:
        return _print_stages(configs)
    silence_hub()
    run_pipeline(folder, configs, resume=True)
    return 0


def _print_stages(configs: list[Config]) -> int:
    import yaml

    stages = [dataclasses.asdict(config) for config in configs]
    print(yaml.safe_dump({"stages": stages}, sort_keys=False), end="")
    return 0


def _given(words: list[str]) -> dict[str, Any] | None:
    """Returns the flags that somebody gave, typed; None after help."""
    try:
        parsed = _parser().parse_args([word for word in words if word != _PRINT], defaults=False)
    except SystemExit:
        return None
    return parsed.as_dict()


def _config(values: dict[str, Any]) -> Config:
    """Returns the Config of a mapping, its values of the types that the keys have."""
    from rlkern.trainer.config import from_dict

    return from_dict(_parser().parse_object(values).as_dict(), "the stages")


def _document(file: str) -> dict[str, Any] | None:
    """Returns what a YAML file holds, None where it is not for us to say what is wrong with it."""
    import yaml

    try:
        found = yaml.safe_load(Path(file).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _take_config(words: list[str]) -> tuple[str | None, list[str]]:
    """Returns the YAML file that --config names, and the other words.

    >>> _take_config(["--config", "x.yaml", "--steps=3"])
    ('x.yaml', ['--steps=3'])
    """
    for index, word in enumerate(words):
        if word.startswith("--config="):
            return word.partition("=")[2], words[:index] + words[index + 1 :]
        if word == "--config" and index + 1 < len(words):
            return words[index + 1], words[:index] + words[index + 2 :]
    return None, words


def _take_resume(words: list[str]) -> tuple[list[str], bool, Path | None]:
    """Returns the words without --resume, whether it was there, and the directory it named."""
    for index, word in enumerate(words):
        rest = words[:index] + words[index + 1 :]
        if word.startswith("--resume="):
            return rest, True, Path(word.partition("=")[2])
        if word == "--resume":
            named = index < len(rest) and not rest[index].startswith("--")
            return rest[:index] + rest[index + named :], True, Path(rest[index]) if named else None
    return words, False, None


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    from rlkern.trainer.config import Config

    parser = ArgumentParser(
        prog="rlkern train",
        usage="rlkern train [--config FILE] [--KEY VALUE ...] [--resume [DIRECTORY]]",
        description="Train a language model by reinforcement learning, on preferences, or on given"
        " answers. Flags go over the YAML file, that over the defaults; a file with `stages` runs"
        " one stage after the other. --resume [directory] goes on with a run or a pipeline.",
        exit_on_error=False,
        print_config=_PRINT,
    )
    parser.add_class_arguments(Config)
    return parser


def _parse(words: list[str], folder: Path | None) -> Config | None:
    """Returns the Config of flags over YAML over defaults (those of a run directory if given), or
    None after help.
    """
    from rlkern.trainer.config import from_dict
    from rlkern.trainer.run.rundir import saved_config

    parser = _parser()
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below.")
    if folder is not None:
        saved = dataclasses.replace(
            saved_config(folder), name=folder.resolve().name, runs_dir=str(folder.resolve().parent)
        )
        parser.set_defaults(dataclasses.asdict(saved))
    try:
        parsed = parser.parse_args(words)
    except SystemExit:
        return None
    values = parsed.as_dict()
    values.pop("config", None)
    return from_dict(values, "the command line")
