# SPDX-License-Identifier: Apache-2.0
"""One small run on chats, which the tests of `sample`, `chat`, `show` and `export` look at."""

from data_helpers import data_file
from trainer_helpers import SMALL, fastest, keyed

import rlkern
from rlkern import cli
from rlkern.runs.settings.layers import Layer
from rlkern.trainer import train
from rlkern.trainer.settings.resolve import resolved

SYSTEM = "Add."


def chat_settings(folder, **changes):
    """Returns settings of a GRPO run on messages with two rewards, with changes."""
    path = folder / "chats.jsonl"
    given = {
        **SMALL,
        "algorithm": "grpo",
        "name": "run",
        "output.dir": str(folder / "runs"),
        "output.completions": 2,
        "data.train": str(path if path.exists() else data_file(folder, "chats")),
        "data.system": SYSTEM,
        "rollout.max_new_tokens": 3,
        "reward.functions": "exact,trainer_rewards:even_digits",
        "sft.steps": 40,
        "steps": 5,
        "eval.items": 10,
    }
    return resolved(Layer("chats", given), Layer("test", keyed(changes))).settings


def trained_on_chats(folder):
    """Returns the directory of a finished run on messages."""
    with rlkern.use_backend(fastest()):
        train(chat_settings(folder))
    return folder / "runs" / "run"


def said(capsys, *arguments):
    """Returns what a command prints."""
    code = cli.main(list(map(str, arguments)))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def refused(capsys, *arguments):
    """Returns the one sentence of a command that does nothing."""
    assert cli.main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"rlkern {arguments[0]}: ") and captured.err.count("\n") == 1
    assert not captured.out
    return captured.err
