# SPDX-License-Identifier: Apache-2.0
"""`rlkern bench`: a table of the fused operations on this machine, to paste into an issue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlkern.cli.guard import guarded
from rlkern.cli.parser import Parser, given

if TYPE_CHECKING:
    from rlkern.testing.speed import Measured, Timing

_HEAD = ("operation", "size", "eager, ms", "rlkern, ms", "eager ÷ rlkern", "GB/s", "of a copy")


def run(arguments: list[str]) -> int:
    """Returns 0 after printing the table; 1 if an operation is wrong here: then none is timed."""
    return guarded("bench", lambda: _bench(arguments))


def _bench(arguments: list[str]) -> int:
    parser = Parser(
        prog="rlkern bench",
        description="Compare the operations with float64, then time them beside eager PyTorch: "
        "medians, and in brackets what a fifth and four fifths of the calls take. In under a "
        "minute on two cores; `make bench` of a checkout measures more.",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--small", action="store_true", help="small sizes: does every line print?")
    flags = given(parser, arguments)
    if flags is None:
        return 0

    from rlkern.runs.device import resolve_device
    from rlkern.testing import speed

    device = flags["device"]
    if device not in (None, *speed.SIZES):
        parser.error(f"--device must be one of {', '.join(speed.SIZES)}, got {device!r}")
    kind = resolve_device(device or "auto").type
    print("\n".join(_where(kind)))
    if not _right(kind):
        return 1
    sizes, seconds = (speed.SMALL, 0.01) if flags["small"] else (speed.SIZES[kind], 0.7)
    rows, vocabulary = sizes["logits"]
    bandwidth = speed.copy(2 * rows * vocabulary, kind, seconds)
    print(f"a copy of as many bytes as the logits have: {bandwidth:.3g} GB/s\n")
    print(_line(_HEAD))
    print(_line(["---"] * len(_HEAD)))
    for measured in speed.measured(kind, sizes, seconds):
        print(_line(_cells(measured, bandwidth)), flush=True)
    return 0


def _where(kind: str) -> list[str]:
    """Returns the lines that say what machine and what versions this is."""
    import torch

    import rlkern
    from rlkern import doctor
    from rlkern.backends import backend_name

    rows = doctor.gpus() if kind == "cuda" else [("processor", doctor.processor())]
    return [
        f"rlkern {rlkern.__version__}, torch {torch.__version__}, {doctor.threads()}",
        *(f"{name}: {value}" for name, value in rows),
        f"served by: {backend_name('policy_loss', kind)}",
    ]


def _right(kind: str) -> bool:
    """Returns whether the operations agree with float64 here, and says so."""
    from rlkern.testing import speed

    found = list(speed.judged(kind))
    wrong = [f"{operation}: {c.output} is {c.error:.2e} off, at most {c.bound:.2e} allowed"
             for operation, c in found if not c.passed]  # fmt: skip
    compared = ", ".join(dict.fromkeys(operation for operation, _ in found))
    said = f"{len(found)} comparisons of {compared} with float64: right"
    print("\n".join(wrong) if wrong else said)
    return not wrong


def _cells(m: Measured, bandwidth: float) -> list[str]:
    share = m.gigabytes / bandwidth
    return [m.operation, m.size, _time(m.eager), _time(m.ours), f"{m.ratio:.2f}",
            f"{m.gigabytes:.3g}", f"{share:.0%}"]  # fmt: skip


def _time(t: Timing) -> str:
    return f"{t.median:.3g} ({t.low:.3g}–{t.high:.3g})"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
