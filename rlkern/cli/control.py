# SPDX-License-Identifier: Apache-2.0
"""`rlkern control`: the classic algorithms on environments of gymnasium."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlkern.cli.flags import add_settings
from rlkern.cli.guard import guarded
from rlkern.cli.parser import Parser, given


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern control`."""
    import gymnasium  # noqa: F401  # without it nothing of this can be said, help neither

    return guarded("control", lambda: _parse_and_run(arguments))


def _parser(arguments: list[str]) -> Parser:
    from rlkern.control.settings import FREE, other_keys, root_of

    root = root_of(arguments)
    others = other_keys(root)
    parser = Parser(
        prog="rlkern control",
        usage="rlkern control --algorithm NAME --env ID [--KEY VALUE ...] [--resume [DIRECTORY]]",
        description="Train a classic algorithm in an environment of gymnasium. Flags override"
        " the YAML file, which overrides the algorithm's recipe for the environment and its"
        " defaults. This list has the keys of the named algorithm, or if none is named, of"
        f" {root.model_fields['algorithm'].default}.",
        add_help=False,
        free=FREE,
        inside=others,
    )
    parser.add_argument("-h", "--help", action="help", help="this list")
    parser.add_argument("--list", action="store_true", help="list the algorithms and stop")
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the keys below")
    parser.add_argument("--resume", nargs="?", const="", metavar="DIRECTORY", help="continue a run")
    parser.add_argument(
        "--print_config", action="store_true", help="print the settings of the run and stop"
    )
    parser.add_argument(
        "--render",
        metavar="FILE",
        help="after the last step, one episode as a moving picture: FILE.gif, or .mp4 with moviepy",
    )
    add_settings(parser, root)
    for key in others:  # a file or a run that goes on may name their algorithm
        parser.add_argument(f"--{key}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _parse_and_run(arguments: list[str]) -> int:
    from rlkern.control.settings import Layer, resolve
    from rlkern.runs.folder import saved_layers
    from rlkern.runs.settings.yaml_file import read, to_yaml

    flags = given(_parser(arguments), arguments)
    if flags is None:
        return 0
    if flags.pop("list"):
        return _list()
    file, resume, print_only = (flags.pop(name) for name in ("config", "resume", "print_config"))
    picture = flags.pop("render")
    layers = [Layer(file or "", read(file) if file else {}), Layer("flags", flags)]
    if resume:
        layers = [*saved_layers(Path(resume), "output_dir", "control"), *layers]
    settings = resolve(*layers)
    if print_only:
        print(to_yaml(settings.model_dump(mode="json")), end="")
        return 0
    from rlkern.control.loop import train
    from rlkern.control.render import check_pictures, check_target, render

    if picture is not None:
        check_target(Path(picture))
        check_pictures(settings)
    summary = train(settings, resume=resume is not None)
    if picture is not None:
        count = render(Path(settings.output_dir) / summary["name"], Path(picture))
        print(f"{count} pictures of an episode are in {picture}")
    return 0


def _list() -> int:
    from rich.console import Console
    from rich.table import Table

    from rlkern.control.algorithms import algorithms

    table = Table()
    for column in ("algorithm", "learns", "policy", "states", "actions", "paper"):
        table.add_column(column)
    for each in algorithms().values():
        policy = "on" if each.on_policy else "off"
        actions = ", ".join(each.actions)
        table.add_row(each.name, each.learns, policy, each.observations, actions, each.paper)
    Console().print(table)
    return 0
