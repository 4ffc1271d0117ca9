# SPDX-License-Identifier: Apache-2.0
"""`rlkern train`: flags over a YAML file over the defaults; one run, or a pipeline's stages."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlkern.cli.flags import add_settings
from rlkern.cli.guard import guarded, silence_hub
from rlkern.cli.parser import Parser, given
from rlkern.runs.folder import PLAN
from rlkern.runs.shipped import config_file
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.keys import FREE, coefficients


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern train`."""
    return guarded("train", lambda: _parse_and_train(arguments))


def _parser() -> Parser:
    parser = Parser(
        prog="rlkern train",
        usage="rlkern train [--config FILE] [--KEY VALUE ...] [--resume [DIRECTORY]]",
        description="Train a language model by reinforcement learning, on preferences, or on given"
        " answers. Flags override the YAML file, which overrides the defaults of the algorithm. A"
        " file with `stages` runs one stage after another. Lists take commas.",
        add_help=False,
        free=FREE,
        inside=coefficients(),
    )
    parser.add_argument("-h", "--help", action="help", help="this list")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of the keys below, yours or one that comes with rlkern",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIRECTORY",
        help="continue a run or a pipeline from its last checkpoint",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the settings of the run and stop"
    )
    parser.add_argument(
        "--show",
        type=int,
        metavar="N",
        help="print N examples as the model reads them, rendered and in tokens, and stop",
    )
    says = "the same as --output.log"
    parser.add_argument(
        "--log", dest="output.log", metavar="X", help=says, default=argparse.SUPPRESS
    )
    add_settings(parser, Settings)
    return parser


def _parse_and_train(arguments: list[str]) -> int:
    from rlkern.runs.settings.yaml_file import read

    flags = given(_parser(), arguments)
    if flags is None:
        return 0
    file, resume = flags.pop("config"), flags.pop("resume")
    print_only, folder = flags.pop("print_config"), Path(resume) if resume else None
    show = flags.pop("show")
    if show is not None and (resume is not None or print_only or show < 1):
        raise _refused(show)
    if folder is not None and (folder / PLAN).is_file():
        _check_resumed(folder, file, flags)
        return _go_on(flags, folder, print_only=print_only)
    document = {} if file is None else read(config_file(file))
    if "stages" in document:
        return _pipeline(
            document, file, flags, resume=resume is not None, print_only=print_only, show=show
        )
    return _one_run(document, file, flags, resume, print_only=print_only, show=show)


def _refused(show: int) -> Exception:
    from rlkern.runs.errors import UserError

    return UserError(
        f"show must be at least 1, and not with --resume or --print_config, got {show}"
    )


def _check_resumed(folder: Path, file: str | None, flags: dict[str, Any]) -> None:
    """Raises UserError for what no stage of a pipeline that goes on would follow."""
    from rlkern.runs.errors import UserError

    if file is not None:
        raise UserError(
            f"{folder} goes on with the stages that it was started with: leave out --config, got"
            f" {file!r}"
        )
    for key in ("name", "output.dir", "output"):
        if key in flags:
            raise UserError(
                f"{folder} goes on where it is, so --{key} changes nothing: leave it out, got"
                f" {flags[key]!r}"
            )


def _show(settings: Settings, count: int) -> int:
    """Returns 0 after printing examples of a run that is not begun."""
    from rlkern.trainer.preview import preview

    silence_hub()
    preview(settings, count)
    return 0


def _one_run(
    document: dict[str, Any],
    file: str | None,
    flags: dict[str, Any],
    resume: str | None,
    *,
    print_only: bool,
    show: int | None,
) -> int:
    from rlkern.runs.folder import saved_layers
    from rlkern.trainer.settings import Layer, resolve
    from rlkern.trainer.settings.document import text

    layers = [Layer(file or "", document), Layer("flags", flags)]
    if resume:
        layers = [*saved_layers(Path(resume), "output.dir", "train"), *layers]
    settings = resolve(*layers)
    if print_only:
        print(text(settings), end="")
        return 0
    if show is not None:
        return _show(settings, show)
    from rlkern.trainer.loop import train

    silence_hub()
    train(settings, resume=resume is not None)
    return 0


def _pipeline(
    document: dict[str, Any],
    file: str,
    flags: dict[str, Any],
    *,
    resume: bool,
    print_only: bool,
    show: int | None,
) -> int:
    """Returns 0 after all stages of a YAML file have run, or examples of the first are shown."""
    from rlkern.runs.folder import check_name
    from rlkern.trainer.pipeline import print_stages, run_pipeline, stages_of

    stages = stages_of(document, flags, file)
    if print_only:
        return print_stages(stages)
    if show is not None:
        return _show(stages[0], show)
    name = flags.get("name") or document.get("name") or Path(file).stem
    check_name(name)
    silence_hub()
    run_pipeline(Path(stages[0].output.dir) / name, stages, resume=resume)
    return 0


def _go_on(flags: dict[str, Any], folder: Path, *, print_only: bool) -> int:
    """Returns 0 after the stages of a pipeline that has begun have run to the end."""
    from rlkern.trainer.pipeline import print_stages, run_pipeline, saved_stages

    stages = saved_stages(folder, flags)
    if print_only:
        return print_stages(stages)
    silence_hub()
    run_pipeline(folder, stages, resume=True)
    return 0
