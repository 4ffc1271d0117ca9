# SPDX-License-Identifier: Apache-2.0
"""Instructions that load, store and copy."""

from typing import Any, NamedTuple

import numpy as np

from .arithmetic import Step
from .program import Instruction, Program, PtxFault
from .values import UNSIGNED, extended, size_of


class Copy(NamedTuple):
    """An asynchronous copy into shared memory, of the threads of one instruction."""

    lane: Any
    target: Any
    source: Any
    length: Any  # bytes to copy; zeros follow up to size
    group: Any
    size: int

    def of(self, chosen: Any) -> "Copy":
        """Returns the same of some of its threads."""
        return Copy(*(x[chosen] for x in self[:-1]), self.size)


def space_of(i: Instruction) -> str:
    """Returns shared or global."""
    space = i.parts[1].partition("::")[0]
    if space not in ("shared", "global"):
        raise PtxFault(f"memory of {'.'.join(i.parts)} is not known here")
    return space


def load_parameter(program: Program, i: Instruction) -> Step:
    destination, address = i.operands
    size, at = size_of(i.kind), program.address(address)
    register = program.size(destination)

    def step(m: Any, active: Any) -> None:
        # A thread that is not active may hold an address of something else.
        where = np.asarray(at(m)).astype(np.int64)
        inside = (where >= 0) & (where + size <= len(m.parameters))
        if not (inside | ~active).all():
            raise PtxFault("reads behind the parameters")
        places = np.where(inside, where, 0)[..., None] + np.arange(size)
        value = np.ascontiguousarray(m.parameters[places]).view(UNSIGNED[size])[..., 0]
        m.put(destination, extended(value, i.kind, register), active)

    return step


def load(program: Program, i: Instruction) -> Step:
    names, address = i.operands[:2]
    if i.parts[1] == "param":
        return load_parameter(program, i)
    names = names if isinstance(names, tuple) else (names,)
    space, size, at = space_of(i), size_of(i.kind), program.address(address)
    registers = [program.size(x) for x in names]

    def step(m: Any, active: Any) -> None:
        values = m.load(space, at(m), size, len(names), active)
        for k, (name, register) in enumerate(zip(names, registers)):
            m.put(name, extended(values[:, k].copy(), i.kind, register), active)

    return step


def store(program: Program, i: Instruction) -> Step:
    address, texts = i.operands[:2]
    texts = texts if isinstance(texts, tuple) else (texts,)
    space, size, at = space_of(i), size_of(i.kind), program.address(address)
    reads = [program.source(x, program.size(x) if x[0] == "%" else size) for x in texts]
    return lambda m, active: m.store(space, at(m), size, [read(m) for read in reads], active)


def copy(program: Program, i: Instruction) -> Step:
    """cp.async: its groups are closed by commit_group and awaited by wait_group."""
    if "commit_group" in i.parts:
        return _close_group
    if "wait_group" in i.parts:
        left = int(i.operands[0])
        return lambda m, active: m.wait_copies(left, active)
    if i.parts[:2] != ("cp", "async") or "global" not in i.parts:
        raise PtxFault(f"{'.'.join(i.parts)} is not known here")
    target, source, width, *rest = i.operands
    to, origin, size = program.address(target), program.address(source), int(width, 0)
    length = program.source(rest[0] if rest else width, 4)

    def step(m: Any, active: Any) -> None:
        lane = np.flatnonzero(active)
        if lane.size:
            parts = (m.full(x)[lane] for x in (to(m), origin(m), length(m)))
            m.begin_copy(Copy(lane, *parts, m.group[lane], size))

    return step


def _close_group(m: Any, active: Any) -> None:
    m.group[active] += 1


def policy(program: Program, i: Instruction) -> Step:
    """createpolicy: caches are not modelled."""
    return lambda m, active: m.put(i.operands[0], np.uint64(0), active)


BUILDERS = {"ld": load, "st": store, "cp": copy, "createpolicy": policy}
