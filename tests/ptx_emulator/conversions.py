# SPDX-License-Identifier: Apache-2.0
"""Instructions that move, choose, compare and convert numbers of each thread."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import Step
from .program import Instruction, Program, PtxFault
from .values import (
    FLOAT,
    SIGNED,
    UNSIGNED,
    bits_of,
    extended,
    number_of,
    size_of,
    to_bfloat16,
    to_float16,
)

# Where shared memory begins among generic addresses: far from any tensor.
SHARED_WINDOW = 1 << 60
# Ordered comparisons are False where either is NaN, those that end in u True.
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": lambda a, b: a != b,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}


def unpack(program: Program, destinations: tuple[str, ...], text: str) -> Step:
    """mov of a register into smaller ones, the lowest bits first."""
    size = max(program.size(x) for x in destinations if x != "_")
    read, part = program.source(text, size * len(destinations)), UNSIGNED[size]

    def step(m: Any, active: Any) -> None:
        value = np.asarray(read(m))
        for k, name in enumerate(destinations):
            m.put(name, (value >> value.dtype.type(8 * size * k)).astype(part), active)

    return step


def pack(program: Program, destination: str, texts: tuple[str, ...]) -> Step:
    """mov of small registers into a larger one, the lowest bits first."""
    whole = UNSIGNED[program.size(destination)]
    size = program.size(destination) // len(texts)
    reads = [program.source(x, size) for x in texts]

    def step(m: Any, active: Any) -> None:
        value = whole(0)
        for k, read in enumerate(reads):
            value = value | np.asarray(read(m)).astype(whole) << whole(8 * size * k)
        m.put(destination, value, active)

    return step


def move(program: Program, i: Instruction) -> Step:
    destination, source = i.operands
    if isinstance(destination, tuple):
        return unpack(program, destination, source)
    if isinstance(source, tuple):
        return pack(program, destination, source)
    read = program.source(source, size_of(i.kind))
    return lambda m, active: m.put(destination, read(m), active)


def choose(program: Program, i: Instruction) -> Step:
    """selp: a where the predicate holds, else b."""
    destination, a, b, p = i.operands
    x, y = (program.source(text, size_of(i.kind)) for text in (a, b))
    holds = program.source(p, 0)
    return lambda m, active: m.put(destination, np.where(holds(m), x(m), y(m)), active)


def change_space(program: Program, i: Instruction) -> Step:
    """cvta: addresses of global memory are generic ones; those of shared memory lie elsewhere."""
    destination, text = i.operands
    read = program.source(text, 8)
    window = {"global": 0, "shared": SHARED_WINDOW}[i.parts[2] if "to" in i.parts else i.parts[1]]
    offset = np.uint64((-window if "to" in i.parts else window) % (1 << 64))
    return lambda m, active: m.put(destination, read(m) + offset, active)


def narrow_float(kind: str) -> Callable[[Any], Any]:
    """Returns the function from float32 numbers to the bits of a float of 16."""
    return to_bfloat16 if kind == "bf16" else to_float16


def convert_pair(program: Program, i: Instruction) -> Step:
    """cvt of two float32 into the high and the low half of a register."""
    destination, high, low = i.operands
    reads = [program.source(x, 4) for x in (high, low)]
    narrow = narrow_float(i.parts[-2].removesuffix("x2"))

    def step(m: Any, active: Any) -> None:
        upper, lower = (narrow(np.asarray(r(m)).view(np.float32)).astype(np.uint32) for r in reads)
        m.put(destination, upper << np.uint32(16) | lower, active)

    return step


def saturated(x: Any) -> Any:
    """Returns numbers cut to [0, 1], 0 for NaN."""
    return np.where(np.isnan(x), np.float32(0), np.clip(x, np.float32(0), np.float32(1)))


def convert(program: Program, i: Instruction) -> Step:
    target, source = i.parts[-2:]
    if target.endswith("x2"):
        return convert_pair(program, i)
    destination, text = i.operands
    read, number = program.source(text, size_of(source)), number_of(source)
    register = program.size(destination)
    changes = {"sat": saturated, "rni": np.rint}
    change = next((changes[x] for x in i.parts[1:-2] if x in changes), None)
    alike = (target, source) == ("f32", "f32")
    if not set(i.parts[1:-2]) <= ({"sat", "rni"} if alike else {"rn"}):
        raise PtxFault(f"{'.'.join(i.parts)} is not known here")
    if target in ("bf16", "f16"):
        narrow = narrow_float(target)
        return lambda m, active: m.put(destination, narrow(number(read(m))), active)
    dtype = FLOAT.get(target) or (SIGNED if target[0] == "s" else UNSIGNED)[size_of(target)]
    if target not in FLOAT and source[0] not in "usb":
        raise PtxFault(f"cvt from {source} to {target} is not known here")

    def step(m: Any, active: Any) -> None:
        value = np.asarray(number(read(m))).astype(dtype)
        value = value if change is None else change(value)
        m.put(destination, extended(bits_of(value), target, register), active)

    return step


def compare(program: Program, i: Instruction) -> Step:
    """setp: whether a comparison holds; of pairs of floats one predicate for each half."""
    names, test = i.operands[0].split("|"), COMPARISONS.get(i.parts[1])
    if test is None or len(i.operands) > 3 or len(i.parts) > 3:  # and, or, xor, ftz
        raise PtxFault(f"{'.'.join(i.parts)} is not known here")
    number, size = number_of(i.kind.removesuffix("x2")), size_of(i.kind)
    a, b = (program.source(text, size) for text in i.operands[1:])
    halves = 2 if i.kind.endswith("x2") else 1

    def step(m: Any, active: Any) -> None:
        x, y = np.asarray(a(m)), np.asarray(b(m))
        for k in range(halves):
            holds = test(*(number(_half(v, k, halves)) for v in (x, y)))
            m.put(names[k], np.asarray(holds), active)
        if len(names) > halves:
            m.put(names[1], ~np.asarray(holds), active)

    return step


def _half(x: Any, k: int, halves: int) -> Any:
    return x if halves == 1 else (x >> np.uint32(16 * k)).astype(np.uint16)


BUILDERS = {"mov": move, "cvta": change_space, "selp": choose, "cvt": convert, "setp": compare}
