# SPDX-License-Identifier: Apache-2.0
"""`rlkern sample`: what a model says to a prompt, token by token as it is drawn."""

from __future__ import annotations

import sys

from rlkern.cli.guard import guarded, silence_hub
from rlkern.cli.parser import Parser, given
from rlkern.cli.speaker import add_speech, speech_of


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern sample`."""
    return guarded("sample", lambda: _sample(arguments))


def _parser() -> Parser:
    parser = Parser(
        prog="rlkern sample",
        description="Print a model's answers to a prompt. The model of a run is asked as in"
        " training: with the same use of the chat template, system message, stop and sampling"
        " options. Any other model is asked in its chat template, if it has one.",
    )
    take = parser.add_argument
    take("target", help="run directory, checkpoint, model directory or smollm2")
    take("prompt", help="the question, or the text to continue")
    take("--samples", type=int, default=1, metavar="N", help="answers to the prompt (default 1)")
    take(
        "--plain",
        action="store_true",
        help="the model continues the prompt as it is: no chat template, and no text around it",
    )
    add_speech(parser)
    return parser


def _sample(arguments: list[str]) -> int:
    flags = given(_parser(), arguments)
    if flags is None:
        return 0
    from rlkern.cli.speaker import make_speaker
    from rlkern.cli.target import check_writes, find_target
    from rlkern.runs.errors import UserError

    speech, count = speech_of(flags), flags["samples"]
    if count < 1:
        raise UserError(f"samples must be at least 1, got {count}")
    if count > 1 and speech.temperature == 0:
        raise UserError(f"samples must be 1 at temperature 0, where all are the same, got {count}")
    target = find_target(flags["target"], flags["checkpoint"], check_writes)
    silence_hub()
    speaker = make_speaker(target, speech)
    prompt = speaker.prompt(flags["prompt"], plain=flags["plain"])
    for number in range(1, count + 1):
        if count > 1:
            print(f"[{number}]")
        for piece in speaker.answer(prompt):
            print(piece, end="", flush=True)
        print(flush=True)
        if not speaker.ended:
            print(
                f"(cut off after {speaker.tokens} tokens; --max_new_tokens takes more)",
                file=sys.stderr,
            )
    return 0
