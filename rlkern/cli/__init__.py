# SPDX-License-Identifier: Apache-2.0
"""The command line `rlkern`: one module of this folder for each command."""

from __future__ import annotations

import importlib
import os
import sys

# What a person types, the module whose `run(arguments) -> exit code` does it, and what help says.
_COMMANDS = {
    "train": ("rlkern.cli.train", "train a language model, or run the stages of a pipeline"),
    "eval": ("rlkern.cli.evaluate", "accuracy and pass@k of a run, a checkpoint or a model"),
    "sample": (
        "rlkern.cli.sample",
        "print the answers of a run's model, or of any model, to a prompt",
    ),
    "chat": ("rlkern.cli.chat", "talk with a run's model, or with any model that has a template"),
    "show": ("rlkern.cli.show", "show a run: settings, curves, held-out numbers, completions"),
    "export": ("rlkern.cli.export", "write a run's model as a plain transformers folder"),
    "control": ("rlkern.cli.control", "train a classic algorithm in a gymnasium environment"),
    "reward": ("rlkern.cli.reward", "try a reward on some items before a run uses it"),
    "compare": ("rlkern.cli.compare", "run algorithms x seeds side by side and write their pages"),
    "algorithms": ("rlkern.cli.algorithms", "list the algorithms: needs, defaults, papers"),
    "bench": ("rlkern.cli.bench", "time the fused operations here, next to eager PyTorch"),
    "doctor": ("rlkern.cli.doctor", "say which backend serves each operation here, and why"),
}

# What a shell calls a program that SIGINT or SIGPIPE ended.
_INTERRUPTED, _BROKEN_PIPE = 130, 141

_EXAMPLES = """
  rlkern train --algorithm grpo --model tiny --task addition
  rlkern train --config configs/tiny_addition.yaml --key value
  rlkern train --config configs/ppo_reward_model.yaml
  rlkern train --resume runs/grpo-tiny-addition
  rlkern eval runs/grpo-tiny-addition --samples 8 --pass_at 1,4,8
  rlkern sample runs/grpo-tiny-addition "12+34="
  rlkern show runs/grpo-tiny-addition --worst
"""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 when all went well, 2 for a mistake that one sentence on stderr
    explains.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help") or arguments == ["help"]:
        print(_usage(), end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "help":
        command, *rest = (*rest, "--help")
    if command not in _COMMANDS:
        from rlkern.runs.settings.names import nearest

        near = nearest(command, _COMMANDS)
        print(
            f"rlkern: there is no command {command!r}{near}: use {', '.join(_COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    try:
        code = importlib.import_module(_COMMANDS[command][0]).run(rest)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:  # while a command was being imported, which takes seconds
        print(f"rlkern {command}: stopped", file=sys.stderr)
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "rlkern"):
            raise
        extra = f"rlkern[{'control' if command == 'control' else 'train'}]"
        said = f"rlkern {command} needs the packages of {extra}: {error}; pip install '{extra}'"
        print(said, file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read this has seen enough, as `head` has; Python's own last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _usage() -> str:
    width = max(map(len, _COMMANDS)) + 2
    lines = [f"  {name:<{width}}{says}\n" for name, (_, says) in _COMMANDS.items()]
    return (
        "usage: rlkern <command> [options]\n\n"
        f"{''.join(lines)}\n"
        "rlkern <command> --help lists its options.\n"
        f"{_EXAMPLES}"
    )
