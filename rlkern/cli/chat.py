# SPDX-License-Identifier: Apache-2.0
"""`rlkern chat`: a conversation with a model in its own chat template."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING

from rlkern.cli.guard import guarded, silence_hub
from rlkern.cli.parser import Parser, given
from rlkern.cli.speaker import add_speech, speech_of

if TYPE_CHECKING:
    from rlkern.cli.speaker import Speaker
    from rlkern.trainer.data.chat import Message

RESET, QUIT = "/reset", "/quit"
_HINT = f"{RESET} forgets the conversation, {QUIT} or Ctrl-D ends it, Ctrl-C stops an answer"


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern chat`."""
    return guarded("chat", lambda: _chat(arguments))


def _parser() -> Parser:
    parser = Parser(
        prog="rlkern chat",
        description=f"Talk with a model in its chat template. {_HINT}.",
    )
    parser.add_argument("target", help="run directory, checkpoint, model directory or smollm2")
    add_speech(parser)
    return parser


def _chat(arguments: list[str]) -> int:
    flags = given(_parser(), arguments)
    if flags is None:
        return 0
    from rlkern.cli.speaker import make_speaker
    from rlkern.cli.target import check_writes, find_target
    from rlkern.runs.errors import UserError

    speech, name = speech_of(flags), flags["target"]
    target = find_target(name, flags["checkpoint"], check_writes)
    silence_hub()
    speaker = make_speaker(target, speech)
    if not speaker.has_template:
        raise UserError(
            f"the tokenizer of {speaker.label} has no chat template, so it cannot keep a"
            f' conversation; ask it once: rlkern sample {name} "..."'
        )
    print(f"{speaker.label}\n{_HINT}")
    _talk(speaker)
    return 0


def _talk(speaker: Speaker) -> None:
    """Asks and answers until the end of the input."""
    # Arrow keys and earlier lines, where Python has them.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    said: list[Message] = []
    while (line := _read()) is not None:
        if line == QUIT:
            return
        if line == RESET:
            said = []
        elif re.fullmatch(r"/\w+", line):
            print(f"there is no command {line}\n{_HINT}")
        elif line:
            said = _answered(speaker, said, line)


def _read() -> str | None:
    """Returns what a person wrote, None at the end of the input; Ctrl-C begins the line anew."""
    while True:
        try:
            return input("you: " if sys.stdin.isatty() else "").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print(f"\n{_HINT}")


def _answered(speaker: Speaker, said: list[Message], line: str) -> list[Message]:
    """Returns the conversation with a question and the printed answer to it; the conversation as it
    was if the question does not fit."""
    from rlkern.runs.errors import UserError
    from rlkern.trainer.data.chat import ASSISTANT, USER, Chat

    asked, text = [*said, {"role": USER, "content": line}], ""
    print("model: ", end="", flush=True)
    try:
        for piece in speaker.answer(Chat(speaker.under_system(asked))):
            text += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)")
        return [*asked, {"role": ASSISTANT, "content": text}]
    except UserError as error:
        print(f"({error}; {RESET} makes room)")
        return said
    cut = f" (cut off after {speaker.tokens} tokens; --max_new_tokens takes more)"
    print("" if speaker.ended else cut)
    return [*asked, {"role": ASSISTANT, "content": text}]
