# SPDX-License-Identifier: Apache-2.0
"""The command line: `rlkern train`, `rlkern algorithms`, `rlkern doctor`."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import warnings
from pathlib import Path

_USAGE = """usage: rlkern <command> [options]

  train        train a language model; rlkern train --help lists the keys
               rlkern train --algorithm grpo --model tiny --task addition
               rlkern train --config configs/tiny_addition.yaml --key value
  algorithms   list the registered algorithms with their defaults
  doctor       say which backend serves each operation here, and why
"""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 when all went well, 2 for a mistake that one sentence on stderr
    explains.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    commands = {"train": _train, "algorithms": _algorithms, "doctor": _doctor}
    if arguments[0] not in commands:
        print(
            f"rlkern: there is no command {arguments[0]!r}: use {', '.join(commands)}",
            file=sys.stderr,
        )
        return 2
    return commands[arguments[0]](arguments[1:])


def _doctor(arguments: list[str]) -> int:
    if arguments:
        print("rlkern doctor takes no options", file=sys.stderr)
        return 2
    from rlkern import doctor

    return doctor.main() or 0


def _algorithms(arguments: list[str]) -> int:
    if arguments:
        print("rlkern algorithms takes no options", file=sys.stderr)
        return 2
    from rlkern import algorithms

    known = algorithms()
    width = max(map(len, known)) + 2
    for algorithm in known.values():
        defaults = ", ".join(f"{name} {value:g}" for name, value in algorithm.defaults.items())
        print(f"{algorithm.name:<{width}}{algorithm.paper}")
        made = f"advantage {algorithm.advantage}, mean by {algorithm.aggregation}"
        print(f"{'':<{width}}{made}{f'; {defaults}' if defaults else ''}")
    return 0


def _train(arguments: list[str]) -> int:
    try:
        _quiet()
        from rlkern.trainer.errors import UserError
    except ImportError as error:
        print(f"rlkern train needs the extra packages of rlkern[train]: {error}", file=sys.stderr)
        return 2
    try:
        return _parse_and_train(arguments)
    except UserError as error:
        print(f"rlkern train: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("rlkern train: stopped before the run began", file=sys.stderr)
        return 130


def _quiet() -> None:
    """Keep libraries from reaching out to a hub and from talking over the progress display."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module=r"(transformers|torch\.utils\.tensorboard)\b.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _parse_and_train(arguments: list[str]) -> int:
    from jsonargparse import ArgumentError

    from rlkern.trainer.errors import UserError
    from rlkern.trainer.settings import validate

    arguments = [_dashed(argument) for argument in arguments]
    arguments, resume, folder = _take_resume(arguments)
    try:
        config = _parse(arguments, folder)
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    if config is None:
        return 0
    validate(config)
    from transformers.utils import logging as hub_logging

    from rlkern.trainer.loop import train

    hub_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    train(config, resume=resume)
    return 0


def _dashed(argument: str) -> str:
    """Returns a flag with underscores, so that --kl-coef and --kl_coef are the same."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


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


if __name__ == "__main__":
    sys.exit(main())
