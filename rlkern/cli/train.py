# SPDX-License-Identifier: Apache-2.0
"""`rlkern train`: flags over a YAML file over the defaults, one run or the stages of a pipeline."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rlkern.cli.guard import guarded, silence_hub, underscored


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern train`."""
    return guarded("train", lambda: _parse_and_train(arguments))


def _parse_and_train(arguments: list[str]) -> int:
    from jsonargparse import ArgumentError

    from rlkern.trainer.errors import UserError
    from rlkern.trainer.settings import validate

    arguments = [underscored(argument) for argument in arguments]
    arguments, resume, folder = _take_resume(arguments)
    try:
        config = _parse(arguments, folder)
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    if config is None:
        return 0
    validate(config)
    from rlkern.trainer.loop import train

    silence_hub()
    train(config, resume=resume)
    return 0


def _take_resume(arguments: list[str]) -> tuple[list[str], bool, Path | None]:
    """Returns the arguments without --resume, whether it was there, and the run directory
    it named."""
    for index, argument in enumerate(arguments):
        if argument.startswith("--resume="):
            return (
                arguments[:index] + arguments[index + 1 :],
                True,
                Path(argument.partition("=")[2]),
            )
        if argument == "--resume":
            named = index + 1 < len(arguments) and not arguments[index + 1].startswith("--")
            rest = arguments[:index] + arguments[index + 1 + named :]
            return rest, True, Path(arguments[index + 1]) if named else None
    return arguments, False, None


def _parse(arguments: list[str], folder: Path | None):
    """Returns the Config of flags over YAML over defaults (those of a run directory if given), or
    None after help.
    """
    from jsonargparse import ArgumentParser

    from rlkern.trainer.config import Config, from_dict, load_yaml

    parser = ArgumentParser(
        prog="rlkern train",
        description="Train a language model by reinforcement learning. Flags go over the YAML"
        " file, that over the defaults. --resume [run directory] goes on with a run.",
        exit_on_error=False,
        print_config="--print_config",
    )
    parser.add_class_arguments(Config)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below.")
    if folder is not None:
        saved = load_yaml(folder / "config.yaml")
        saved = dataclasses.replace(
            saved, name=folder.resolve().name, runs_dir=str(folder.resolve().parent)
        )
        parser.set_defaults(dataclasses.asdict(saved))
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit:
        return None
    values = parsed.as_dict()
    values.pop("config", None)
    return from_dict(values, "the command line")
