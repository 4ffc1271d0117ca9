# SPDX-License-Identifier: Apache-2.0
"""Branches and barriers: what they return is (threads that leave, where to)."""

from .arithmetic import Step
from .program import Instruction, Program, PtxFault

WAIT, EXIT = -1, -2


def barrier(program: Program, i: Instruction) -> Step:
    if "warp" in i.parts:
        return lambda m, active: m.clock.pass_warp_barrier(m.thread[active])
    if i.operands != ("0",):
        raise PtxFault(f"barrier {i.operands} is not known here")
    return lambda m, active: (active, WAIT)


def branch(program: Program, i: Instruction) -> Step:
    target = program.labels[i.operands[0]]
    return lambda m, active: (active, target) if active.any() else None


def leave(program: Program, i: Instruction) -> Step:
    return lambda m, active: (active, EXIT)


BUILDERS = {"bar": barrier, "barrier": barrier, "bra": branch, "ret": leave, "exit": leave}
