# SPDX-License-Identifier: Apache-2.0
"""Instructions of the Triton kernels per element, counted in their machine code; no GPU needed.

    python -m benchmarks.instructions             prints the counts, and commits them to results/
    python -m benchmarks.instructions --check     says where they differ from the committed ones

A kernel is compiled for GPUs that are not there, and its loops are read from SASS. What a GPU can
issue in a second bounds the time from below, as its bandwidth does: no speed is measured here.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from benchmarks import processes, report
from rlkern.runs.files import write_text
from rlkern.testing import aot
from rlkern.testing.sass import Loop, disassembled, loops

RESULTS = Path(__file__).parent / "results" / "instructions.jsonl"
TARGETS = ("sm_80", "sm_90", "sm_100")
N, T = 8192, 2048
# Rows that begin at 16 bytes, and rows that do not.
SHAPES = ((torch.bfloat16, 151936), (torch.float32, 151936), (torch.bfloat16, 50257))
IDENTITY = ("kernel", "triton", "target", "dtype", "V", "loop")


class Work(NamedTuple):
    """What a kernel does with an element, of so many bytes in memory.

    elements  how many of them a round of a loop treats, told from its accesses
    passes    bytes that each must move between the GPU's memory and its processors at least
    """

    elements: Callable[[Loop, int], float]
    passes: Callable[[int], int]


def _loaded(loop: Loop, size: int) -> float:
    return sum(loop.loads) / size


KERNELS = {
    "token_logprob_forward": Work(_loaded, lambda size: size),
    "companion_forward": Work(_loaded, lambda size: size),
    "token_logprob_backward_kernel": Work(_loaded, lambda size: 2 * size),
    "policy_loss_kernel": Work(_loaded, lambda size: 2 * size),
    "scale_kernel": Work(_loaded, lambda size: 2 * size),
    "scale_rows_kernel": Work(_loaded, lambda size: 2 * size),
    # Steps of sequences, in float32: one result of each, or two.
    "reverse_scan_kernel": Work(lambda loop, size: sum(loop.stores) / 4, lambda size: 12),
    "gae_kernel": Work(lambda loop, size: sum(loop.stores) / 8, lambda size: 17),
}

# Kernels that bend logits, where there is a softcap, and the name under which they are counted.
SOFTCAP, MARK = 30.0, " (softcap)"
CAPPED = tuple(KERNELS)[:4]


def work_of(name: str) -> Work:
    """Returns what a kernel does, with a softcap or without."""
    return KERNELS[name.removesuffix(MARK)]


class Device(NamedTuple):
    """A GPU by its data sheet: a multiprocessor issues 4 warps a clock, and 16 threads to MUFU."""

    target: str
    multiprocessors: int
    ghz: float
    terabytes_per_second: float

    def bounds_ms(self, elements: float, instructions: float, mufu: float, bytes_: float) -> Any:
        """Returns the least times {issue, mufu, memory}, given numbers for each element.

        >>> times = DEVICES["H100"].bounds_ms(8192 * 151936, 44.7, 2.06, 4)
        >>> {name: round(ms, 2) for name, ms in times.items()}
        {'issue': 1.94, 'mufu': 0.71, 'memory': 1.49}
        """
        clocks = self.multiprocessors * self.ghz * 1e6  # a millisecond
        return {
            "issue": elements * instructions / (128 * clocks),
            "mufu": elements * mufu / (16 * clocks),
            "memory": elements * bytes_ / (self.terabytes_per_second * 1e9),
        }


DEVICES = {
    "A100": Device("sm_80", 108, 1.41, 2.0),
    "H100": Device("sm_90", 132, 1.7, 3.35),
    "H200": Device("sm_90", 132, 1.7, 4.8),
    "B200": Device("sm_100", 148, 1.85, 8.0),
}


def launch_scans() -> None:
    """Launches the scans of rows of several blocks."""
    x = torch.zeros(3, T)
    aot.kernels.reverse_scan(x, x)
    aot.kernels.gae(x, x, x == 0, torch.full((2,), 0.9, dtype=torch.float64))


def rows_of(name: str, kernel: Any, dtype: torch.dtype, V: int, target: str) -> Iterator[dict]:
    """Yields a row for each loop of a compiled kernel that treats elements."""
    used, size = aot.resources(kernel), dtype.itemsize
    treated = [(loop, work_of(name).elements(loop, size)) for loop in loops(disassembled(kernel))]
    for n, (loop, elements) in enumerate(pair for pair in treated if pair[1]):
        kind = str(dtype).removeprefix("torch.")
        where = (name, triton.__version__, target, kind, V, n)
        yield dict(zip(IDENTITY, where)) | {
            "instructions_per_element": round(loop.instructions / elements, 2),
            "mufu_per_element": round(loop.mufu / elements, 2),
            "barriers": loop.barriers,
            "shuffles": loop.shuffles,
            "load_bytes": sorted(set(loop.loads)),
            "registers": used.registers,
            "spills": used.spills,
        }


def count(target: str) -> Iterator[dict]:
    """Yields the rows of a target; V is the length of a sequence where a kernel sees no logits."""
    with aot.compiling(target) as compiled:
        for dtype, V in SHAPES:
            aot.launch_rows(dtype, V)
            for name, kernel in compiled:
                if name in KERNELS:
                    yield from rows_of(name, kernel, dtype, V, target)
            compiled.clear()
        for dtype, V in SHAPES[:2]:
            aot.launch_rows(dtype, V, softcap=SOFTCAP)
            for name, kernel in compiled:
                if name in CAPPED:
                    yield from rows_of(name + MARK, kernel, dtype, V, target)
            compiled.clear()
        launch_scans()
        for name, kernel in compiled:
            yield from rows_of(name, kernel, torch.float32, T, target)


def key(row: dict) -> tuple:
    """Returns what a row is of."""
    return tuple(row[name] for name in IDENTITY)


def committed(path: Path = RESULTS) -> dict[tuple, dict]:
    """Returns the committed rows by what they are of."""
    return {key(row): row for row in report.records(path)}


def bounds(rows: Iterable[dict]) -> Iterator[str]:
    """Yields a line for each kernel, shape and GPU: the least time, and what sets it."""
    kernels: dict[tuple, list[dict]] = {}
    for row in rows:
        kernels.setdefault(key(row)[:-1], []).append(row)
    for (name, _, target, kind, V), parts in kernels.items():
        instructions, mufu = (
            sum(part[field] for part in parts)
            for field in ("instructions_per_element", "mufu_per_element")
        )
        moved = work_of(name).passes(getattr(torch, kind).itemsize)
        for gpu, device in DEVICES.items():
            if device.target == target:
                times = device.bounds_ms(N * V, instructions, mufu, moved)
                of = max(times, key=lambda x: times[x])
                each = "  ".join(f"{x} {ms:7.3f}" for x, ms in times.items())
                yield f"{gpu} {name:<39} {kind:<9} {N}×{V:<7} ms: {each}  at least {of}'s"


def line_of(row: dict) -> str:
    """Returns a row as a line of the table."""
    numbers = (f"{name} {row[name]}" for name in row if name not in IDENTITY)
    where = (row[name] for name in ("target", "kernel", "dtype", "V", "loop"))
    return "{:<7} {:<39} {:<9} {:<7} loop {}  ".format(*where) + "  ".join(numbers)


def differences(rows: list[dict], before: dict[tuple, dict]) -> list[str]:
    """Returns what the committed rows of the same targets and version say otherwise."""
    now = {key(row): row for row in rows}
    versions = {(row["triton"], row["target"]) for row in rows}
    old = {k: row for k, row in before.items() if (row["triton"], row["target"]) in versions}
    return [
        f"{k}: committed {old.get(k)}, counted {now.get(k)}"
        for k in {**old, **now}
        if old.get(k) != now.get(k)
    ]


def main() -> None:
    """Prints counts and bounds; with --check exits with 1 if a committed count is another."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"targets must be of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    try:
        before = committed()
    except ValueError as error:
        parser.error(str(error))
    rows = [row for target in arguments.targets for row in count(target)]
    print("\n".join(map(line_of, rows)))
    if arguments.check:
        wrong = differences(rows, before)
        print(
            "\n".join([*wrong, "run python -m benchmarks.instructions"])
            if wrong
            else "as committed"
        )
        raise SystemExit(bool(wrong))
    print("\n".join(bounds(rows)))
    measured = {(row["triton"], row["target"]) for row in rows}
    kept = [r for r in before.values() if (r["triton"], r["target"]) not in measured]
    text = "".join(json.dumps(row) + "\n" for row in sorted([*kept, *rows], key=key))
    write_text(RESULTS, text)


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
