# SPDX-License-Identifier: Apache-2.0
"""What the tests ask of compiled kernels, in a process without Triton's interpreter.

Each function is run there by Elsewhere, and returns what can be sent back.
"""

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from rlkern.backends import triton as kernels
from rlkern.backends.triton import _rows, scale
from rlkern.testing import aot, conformance
from rlkern.testing.cases import CASES, Case

from . import direct, launches
from .inputs import inputs, loss, scored
from .machine import Machine
from .shadow import Race

# Of one multiprocessor, so that each persistent program of scale_ takes several blocks; and half
# the warps, so that a row of 4097 logits has several blocks in every dtype.
MULTIPROCESSORS, WARPS = 1, 4
# Rows of two blocks and of an odd length of which the last block lacks one column in every dtype:
# of block_plus_one it has one, and most of its accesses never happen.
LISTED = {case.name: case for case in (*CASES, Case("blocks_minus_one", V=8191))}


@contextmanager
def small() -> Iterator[None]:
    """Makes kernels be launched as if all were smaller."""
    with (
        mock.patch.object(scale, "multiprocessors", lambda device: MULTIPROCESSORS),
        mock.patch.object(_rows, "WARPS", WARPS),
    ):
        yield


class Result(NamedTuple):
    """How far the outputs of a case are off, and what the machine found on the way."""

    comparison: conformance.Comparison
    races: list[Race]
    sectors: float  # per request of a warp
    used: float  # of the bytes fetched

    @property
    def share_of_bound(self) -> float:
        c = self.comparison
        return c.error / c.bound if c.bound else 0.0


class Elsewhere:
    """A process in which kernels are compiled, into a folder that others share, and executed."""

    def __init__(self, cache: Path) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        with mock.patch.dict(os.environ, TRITON_CACHE_DIR=str(cache)):
            os.environ.pop("TRITON_INTERPRET", None)
            self.run(launches.skip_the_assembler)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns what a function returns there."""
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        """Ends the process."""
        self._pool.shutdown()


def compare(operation: str, name: str, kind: str, target: str) -> Result:
    """Returns how an operation fares on a case, compiled for a target."""
    case, dtype = LISTED[name], getattr(torch, kind)
    with (
        launches.emulated(target) as machine,
        small(),
    ):
        got = conformance.outputs(operation, case, "triton", dtype, "cpu")
    want = conformance.expectation(operation.removesuffix(conformance.IN_PLACE), case, dtype, "cpu")
    comparison = conformance.judged(want, got)
    traffic = machine.traffic.values()
    requests, sectors, used = (
        sum(getattr(t, name) for t in traffic) for name in ("requests", "sectors", "bytes")
    )
    races = list(machine.races.values())
    return Result(comparison, races, sectors / max(requests, 1), used / max(32 * sectors, 1))


def used_bytes(kind: str, V: int) -> dict[str, float]:
    """Returns which part of the bytes that each kernel fetches it uses, by name.

    Of rows of V logits, of 8192 tokens, and of 4 sequences of 2048 steps.
    """
    with launches.emulated("sm_90") as machine:
        aot.launch_rows(getattr(torch, kind), V)
        vocabulary = {name: traffic.used for name, traffic in machine.traffic.items()}
    with launches.emulated("sm_90") as machine:
        direct.vectors(4, 2048)
    vectors = {name: traffic.used for name, traffic in machine.traffic.items()}
    return vocabulary | vectors


def rows_at_odd_addresses(target: str) -> list[str]:
    """Returns what is wrong with rows of an even length that begin at no multiple of 16 bytes.

    Theirs are the bits of rows that are an odd number of elements apart, read as narrowly.
    """
    found = []
    for dtype, V in ((torch.bfloat16, 4104), (torch.float32, 2052), (torch.bfloat16, 1000)):
        given = inputs(V, B=2, T=2, dtype=dtype)
        shapes = {"begins at 1": (1, V + 8), "begins at 0": (0, V + 8), "apart": (0, V + 9)}
        results = {}
        for name, (begin, stride) in shapes.items():
            x, grad = (torch.zeros(4 * stride + 1, dtype=dtype) for _ in range(2))
            place = (2, 2, V), (2 * stride, stride, 1), begin
            x, grad = (y.as_strided(*place) for y in (x, grad))
            x.copy_(given.logits)
            with launches.emulated(target) as machine, small():
                moved = given._replace(logits=x)
                results[name] = [*scored(kernels, moved)[:4], *loss(kernels, moved, grad)]
            found += [f"{name}, {dtype}, {V}: {race}" for race in machine.races.values()]
        pairs = zip(results["begins at 1"], results["apart"])
        found += [f"{dtype}, {V}: bits of {n}" for n, (x, y) in enumerate(pairs) if not x.equal(y)]
    return found


def without_barriers(launch: Callable[[], None], kernel: str) -> list[tuple[str, bool]]:
    """Returns (line, whether a race was found) of every second barrier of a kernel."""
    texts: list[str] = []

    def run(edit: Callable[[str], str]) -> Machine:
        with (
            launches.emulated("sm_90", edit) as machine,
            small(),
        ):
            launch()
        return machine

    def unchanged(ptx: str) -> str:
        if f".entry {kernel}(" in ptx:
            texts.append(ptx)
        return ptx

    assert not run(unchanged).races
    (text,) = texts
    found = []
    for barrier in list(re.finditer(r"bar\.sync\s+0;", text))[::2]:
        cut = text[: barrier.start()] + text[barrier.end() :]
        machine = run(lambda ptx, cut=cut: cut if ptx == text else ptx)
        line = re.findall(r"\.loc.*// ([\w.:]+)", text[: barrier.start()])[-1]
        found.append((line, bool(machine.races)))
    return found
