# SPDX-License-Identifier: Apache-2.0
"""What a line of each results file must hold, so that a broken one is a sentence, no traceback."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What a field must be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


class Form(NamedTuple):
    """A line of a file.

    always   {field: kind} of every line
    either   of which a line has one
    perhaps  of which a line has any
    """

    always: Mapping[str, Kind]
    either: Mapping[str, Kind] = {}
    perhaps: Mapping[str, Kind] = {}


def _number(x: Any) -> bool:
    return type(x) in (int, float) and x == x


def _times(x: Any) -> bool:
    whole = isinstance(x, list) and len(x) in (4, 5) and all(map(_number, x))
    return whole and min(x[:4]) > 0


def _side(*names: str) -> Kind:
    return Kind(
        f"an object of the numbers {', '.join(names)}",
        lambda x: isinstance(x, dict) and {*names} <= x.keys() and all(map(_number, x.values())),
    )


OPERATIONS = ("logprob", "logprob_and_entropy", "linear_logprob", "linear_grpo", "gae")
CASES = ("wide", "short", "long", "generate", "ends")
TEXT = Kind("a text", lambda x: isinstance(x, str) and bool(x))
ANY_TEXT = Kind("a text", lambda x: isinstance(x, str))  # rows kept elsewhere may have no commit
WHOLE = Kind("a whole number above 0", lambda x: type(x) is int and x > 0)
COUNT = Kind("a whole number", lambda x: type(x) is int)
NUMBER = Kind("a number", _number)
ABOVE_0 = Kind("a number above 0", lambda x: _number(x) and x > 0)
SHAPE = Kind(
    "a list of sizes", lambda x: isinstance(x, list) and bool(x) and all(map(WHOLE.fits, x))
)
TIMES = Kind("median, p20, p80 and fastest in ms", _times)
ROWS = Kind(
    "an object of rows, each median, p20, p80 and fastest in ms",
    lambda x: isinstance(x, dict) and bool(x) and all(map(_times, x.values())),
)
CASE = Kind(f"of {', '.join(CASES)}", lambda x: x in CASES)
OPERATION = Kind(f"of {', '.join(OPERATIONS)}", lambda x: x in OPERATIONS)
SPEED = _side("tokens_a_second")
STEP = _side("seconds", "rollout", "tokens_a_second", "before_mib", "peak_mib")

_PROCESSOR = {"commit": TEXT, "cpu": TEXT, "threads": WHOLE}
_TORCH = {**_PROCESSOR, "isa": TEXT, "torch": TEXT}
FORMS = {
    "cpu.jsonl": Form({**_TORCH, "group": TEXT}, {"ms": ROWS, "left_out": TEXT}),
    "peers_cpu.jsonl": Form(
        {**_TORCH, "op": OPERATION, "size": TEXT, "row": TEXT}, {"ms": TIMES, "absent": TEXT}
    ),
    "memory.jsonl": Form({**_TORCH, "row": TEXT, "tokens": WHOLE, "extra_mib": NUMBER}),
    "end_to_end.jsonl": Form(
        {**_PROCESSOR, "case": CASE, "dtype": TEXT, "ratio": ABOVE_0, "rlkern": SPEED},
        {"generate": SPEED, "trl": STEP},
    ),
    "instructions.jsonl": Form(
        {"kernel": TEXT, "triton": TEXT, "target": TEXT, "dtype": TEXT, "V": WHOLE, "loop": COUNT,
         "instructions_per_element": NUMBER, "mufu_per_element": NUMBER}
    ),
}  # fmt: skip
# Every other file is that of a GPU.
GPU = Form(
    {"date": TEXT, "commit": ANY_TEXT, "torch": TEXT, "device": TEXT, "row": TEXT, "shape": SHAPE},
    {"ms": ABOVE_0, "error": TEXT, "python_us": ABOVE_0},
    dict.fromkeys(("goal_ms", "share_of_bound", "tflops", "peak_extra_bytes"), NUMBER),
)


def problem(line: Any, file: str) -> str | None:
    """Returns what a line of a file must have and has not, None if nothing.

    >>> problem({}, "cpu.jsonl")
    "must have 'commit', a text, got none"
    >>> one = {"commit": "a", "cpu": "C", "threads": 2, "isa": "AVX2", "torch": "2", "group": "g"}
    >>> problem(one, "cpu.jsonl")
    "must have one of 'ms', 'left_out', got none"
    >>> problem(one | {"left_out": "slow", "threads": "2"}, "cpu.jsonl")
    "must have 'threads', a whole number above 0, got '2'"
    >>> problem(one | {"ms": {"row": [1.0, 1.0, 1.0, 1.0]}}, "cpu.jsonl")
    """
    if not isinstance(line, dict):
        return f"must be a JSON object, got {_short(line)}"
    form = FORMS.get(file, GPU)
    for name, kind in form.always.items():
        if name not in line:
            return f"must have {name!r}, {kind.words}, got none"
    given = [name for name in form.either if name in line]
    if form.either and len(given) != 1:
        found = " and ".join(map(repr, given)) or "none"
        return f"must have one of {', '.join(map(repr, form.either))}, got {found}"
    for name, kind in {**form.always, **form.either, **form.perhaps}.items():
        if name in line and not kind.fits(line[name]):
            return f"must have {name!r}, {kind.words}, got {_short(line[name])}"
    if "trl" in line and not STEP.fits(line["rlkern"]):
        return f"must have 'rlkern', {STEP.words}, got {_short(line['rlkern'])}"
    return None


def _short(x: object) -> str:
    text = repr(x)
    return text if len(text) <= 60 else f"{text[:57]}..."
