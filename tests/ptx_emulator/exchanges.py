# SPDX-License-Identifier: Apache-2.0
"""Instructions by which the threads of a warp exchange numbers."""

from functools import cache
from typing import Any

import numpy as np

from .arithmetic import Step
from .program import Instruction, Program, PtxFault
from .shadow import WARP
from .values import POISON, bits_of, number_of

LANE = np.arange(WARP)
REDUCTIONS = {"add": np.sum, "min": np.min, "max": np.max}


def whole_warps(active: Any) -> None:
    """Raises PtxFault unless all threads of a warp take part, or none."""
    rows = active.reshape(-1, WARP)
    if not (rows.all(1) | ~rows.any(1)).all():
        raise PtxFault("an instruction of whole warps reached by part of one")


def source_lane(mode: str, n: Any, c: int) -> tuple[Any, Any]:
    """Returns (which lane each reads, whether it is within its segment); n may differ by lane."""
    segment, clamp = (c >> 8) & 31, c & 31
    lowest = LANE & segment
    highest = lowest | (clamp & ~segment)
    moved = {"bfly": LANE ^ n, "up": LANE - n, "down": LANE + n, "idx": lowest | (n & ~segment)}
    inside = moved[mode] >= highest if mode == "up" else moved[mode] <= highest
    return np.where(inside, moved[mode], LANE), inside


def of_all(m: Any, value: Any, active: Any) -> Any:
    """Returns the one number that all active threads have, or what each has."""
    if np.ndim(value) and active.any():
        some = m.full(value)[active]
        return some[0] if (some == some[0]).all() else value
    return value


_known_source_lane = cache(source_lane)


def shuffle(program: Program, i: Instruction) -> Step:
    """shfl: another lane's number, or one's own beyond the segment; poison if that lane is off."""
    mode, names = i.parts[2], i.operands[0].split("|")
    read, distance, clamp = (program.source(x, 4) for x in i.operands[1:4])

    def step(m: Any, active: Any) -> None:
        n, c = (of_all(m, read(m), active) for read in (distance, clamp))
        if np.ndim(c):
            raise PtxFault("a shuffle whose segments differ by thread is not known here")
        rows = active.reshape(-1, WARP)
        if np.ndim(n):
            lane, inside = source_lane(mode, (n & 31).astype(int).reshape(-1, WARP), int(c))
        else:
            lane, inside = _known_source_lane(mode, int(n) & 31, int(c))
        lane, inside = np.broadcast_to(lane, rows.shape), np.broadcast_to(inside, rows.shape)
        present = np.take_along_axis(rows, lane, 1)
        value = np.take_along_axis(m.full(read(m)).reshape(-1, WARP), lane, 1)
        m.put(names[0], np.where(present, value, POISON[4]).ravel(), active)
        if len(names) > 1:
            m.put(names[1], inside.ravel(), active)

    return step


def reduction(program: Program, i: Instruction) -> Step:
    """redux: the sum, least or greatest of a warp."""
    reduce = REDUCTIONS.get(i.parts[2])
    if reduce is None:
        raise PtxFault(f"{'.'.join(i.parts)} is not known here")
    read, number = program.source(i.operands[1], 4), number_of(i.kind)

    def step(m: Any, active: Any) -> None:
        whole_warps(active)
        value = number(m.full(read(m))).reshape(-1, WARP)
        one = reduce(value, axis=1).astype(value.dtype)
        m.put(i.operands[0], bits_of(np.repeat(one, WARP)), active)

    return step


# Of a matrix of 8 × 8 halves, lane 4r + c/2 holds columns c and c + 1 of row r.


def _halves(program: Program, i: Instruction, address: str) -> Any:
    """Returns the function of (machine, matrix) that has the addresses of a lane's two halves."""
    if i.kind != "b16" or not {"x1", "x2", "x4"} & set(i.parts):
        raise PtxFault(f"{'.'.join(i.parts)} is not known here")
    at, transposed = program.address(address), "trans" in i.parts

    def addresses(m: Any, k: int) -> list[Any]:
        rows = m.full(at(m)).reshape(-1, 4, 8)[:, k]  # lane 8k + r has the address of row r
        out = []
        for half in (0, 1):
            row, column = LANE // 4, 2 * (LANE % 4) + half
            row, column = (column, row) if transposed else (row, column)
            out.append((rows[:, row] + (2 * column).astype(np.uint32)).ravel())
        return out

    return addresses


def load_matrix(program: Program, i: Instruction) -> Step:
    names, address = i.operands
    halves = _halves(program, i, address)

    def step(m: Any, active: Any) -> None:
        whole_warps(active)
        for k, name in enumerate(names):
            low, high = (
                m.load("shared", at, 2, 1, active)[:, 0].astype(np.uint32) for at in halves(m, k)
            )
            m.put(name, low | high << np.uint32(16), active)

    return step


def store_matrix(program: Program, i: Instruction) -> Step:
    address, names = i.operands
    halves = _halves(program, i, address)
    reads = [program.source(name, 4) for name in names]

    def step(m: Any, active: Any) -> None:
        whole_warps(active)
        for k, read in enumerate(reads):
            value = m.full(read(m))
            for half, at in enumerate(halves(m, k)):
                part = (value >> np.uint32(16 * half)).astype(np.uint16)
                m.store("shared", at, 2, [part], active)

    return step


BUILDERS = {
    "shfl": shuffle,
    "redux": reduction,
    "ldmatrix": load_matrix,
    "stmatrix": store_matrix,
}
