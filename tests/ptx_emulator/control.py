# SPDX-License-Identifier: Apache-2.0
"""Branches and barriers: what they return is (threads that leave, where to)."""

from typing import Any

from .arithmetic import Step
from .exchanges import whole_warps
from .program import Instruction, Program, PtxFault

WAIT, EXIT = -1, -2


def warp_barrier(m: Any, active: Any) -> None:
    whole_warps(active)
    m.clock.pass_warp_barrier(m.thread[active])


def barrier(program: Program, i: Instruction) -> Step:
    if "warp" in i.parts:
        return warp_barrier
    if i.operands[0] != "0" or "sync" not in i.parts:
        # Compiled for teams that a block of this launch may not have.
        def unknown(m: Any, active: Any) -> Any:
            if active.any():
                raise PtxFault(f"barrier {i.operands} is not known here")

        return unknown
    count = program.source(i.operands[1], 4) if len(i.operands) > 1 else None

    def wait(m: Any, active: Any) -> Any:
        if count is not None and (m.full(count(m))[active] != program.threads).any():
            raise PtxFault("a barrier of some threads of a block is not known here")
        return active, WAIT

    return wait


def branch(program: Program, i: Instruction) -> Step:
    target = program.labels[i.operands[0]]
    return lambda m, active: (active, target) if active.any() else None


def leave(program: Program, i: Instruction) -> Step:
    return lambda m, active: (active, EXIT)


BUILDERS = {"bar": barrier, "barrier": barrier, "bra": branch, "ret": leave, "exit": leave}
