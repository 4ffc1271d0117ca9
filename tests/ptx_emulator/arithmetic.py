# SPDX-License-Identifier: Apache-2.0
"""Instructions that compute a number of each thread from others of it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .program import Instruction, Program, PtxFault
from .values import SIGNED, UNSIGNED, bits_of, flushed, number_of, size_of, to_bfloat16

Step = Callable[[Any, Any], Any]
BYTE = np.uint64(255)


def elementwise(program: Program, i: Instruction, function: Callable[..., Any]) -> Step:
    """Returns the step that applies a function to the operands as numbers of the type."""
    exact = i.kind == "bf16" and i.parts[0] in ("min", "max")
    if i.kind.endswith(("f16", "x2")) and not exact:
        raise PtxFault(f"{'.'.join(i.parts)} is not known here")
    size, number, flushes = size_of(i.kind), number_of(i.kind), "ftz" in i.parts
    destination, *operands = i.operands
    reads = [program.source(x, size) for x in operands]
    bits = to_bfloat16 if exact else bits_of

    def step(m: Any, active: Any) -> None:
        numbers = [number(read(m)) for read in reads]
        if flushes:
            numbers = [flushed(x) for x in numbers]
        value = function(*numbers)
        m.put(destination, bits(flushed(value) if flushes else value), active)

    return step


def of_numbers(function: Callable[..., Any]) -> Callable[[Program, Instruction], Step]:
    """Returns the builder of an instruction that is one function for all its types."""
    return lambda program, i: elementwise(program, i, function)


def rounded(function: Callable[[Any], Any]) -> Callable[[Program, Instruction], Step]:
    """Returns the builder of a function of float32 that is computed in float64, then rounded."""
    return of_numbers(lambda x: np.asarray(function(np.asarray(x, np.float64))).astype(np.float32))


def widened(program: Program, i: Instruction, function: Callable[..., Any]) -> Step:
    """Returns the step of a product in twice as many bits as its factors have."""
    size = size_of(i.kind)
    wide = (SIGNED if i.kind[0] == "s" else UNSIGNED)[2 * size]
    number, wide_number = number_of(i.kind), number_of(f"{i.kind[0]}{16 * size}")
    destination, *operands = i.operands
    reads = [program.source(x, size) for x in operands[:2]]
    sums = [program.source(x, 2 * size) for x in operands[2:]]

    def step(m: Any, active: Any) -> None:
        factors = [np.asarray(number(read(m))).astype(wide) for read in reads]
        m.put(destination, bits_of(function(*factors, *(wide_number(r(m)) for r in sums))), active)

    return step


def multiply(program: Program, i: Instruction) -> Step:
    if "hi" in i.parts:
        raise PtxFault("mul.hi is not known here")
    if "wide" in i.parts:
        return widened(program, i, lambda a, b: a * b)
    return elementwise(program, i, lambda a, b: a * b)


def multiply_add(program: Program, i: Instruction) -> Step:
    if "hi" in i.parts:
        raise PtxFault("mad.hi is not known here")
    if "wide" in i.parts:
        return widened(program, i, lambda a, b, c: a * b + c)
    return elementwise(program, i, lambda a, b, c: a * b + c)


def fused(a: Any, b: Any, c: Any) -> Any:
    """Returns a·b + c rounded once: float32 by way of float64, float64 by way of 80 bits.

    The sum in the wider format is rounded too, so that in rare ties the last bit is another.
    """
    narrow = np.asarray(a).dtype
    wide = np.float64 if narrow == np.float32 else np.longdouble
    a, b, c = (np.asarray(x).astype(wide) for x in (a, b, c))
    return (a * b + c).astype(narrow)


def fused_below(a: Any, b: Any, c: Any) -> Any:
    """Returns a·b + c of float32 rounded once, down.

    >>> fused_below(np.float32(2**-30), np.float32(-1), np.float32(1)) < 1
    np.True_
    """
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    product = a * b  # exact
    wide = product + c
    rest = (product - (wide - (wide - product))) + (c - (wide - product))  # that its rounding left
    near = wide.astype(np.float32)
    above = (near > wide) | ((near == wide) & (rest < 0))
    return np.where(above, np.nextafter(near, np.float32(-np.inf)), near)


def fused_multiply_add(program: Program, i: Instruction) -> Step:
    roundings = {"rn": fused, "rm": fused_below}
    if i.parts[1] not in roundings or (i.parts[1] == "rm" and i.kind != "f32"):
        raise PtxFault(f"{'.'.join(i.parts)} is not known here")
    return elementwise(program, i, roundings[i.parts[1]])


def quotient(a: Any, b: Any) -> Any:
    """Returns a / b; of integers cut towards 0, as C has it."""
    if np.asarray(a).dtype.kind == "f":
        return np.asarray(a / b)
    b = np.where(b == 0, np.ones_like(b), b)
    if np.asarray(a).dtype.kind == "u":
        return a // b
    q = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -q, q).astype(np.asarray(a).dtype)


def of_halves(program: Program, i: Instruction, function: Callable[..., Any]) -> Step:
    """Returns the step that applies a function to both halves of registers; it must be exact."""
    kind = i.kind.removesuffix("x2")
    number = number_of(kind)
    destination, *operands = i.operands
    reads = [program.source(x, 4) for x in operands]

    def bits(x: Any) -> Any:
        half = to_bfloat16(x) if kind == "bf16" else bits_of(np.asarray(x).astype(np.float16))
        return np.asarray(half).astype(np.uint32)

    def step(m: Any, active: Any) -> None:
        values = [np.asarray(read(m)) for read in reads]
        low, high = (
            bits(function(*(number((v >> np.uint32(n)).astype(np.uint16)) for v in values)))
            for n in (0, 16)
        )
        m.put(destination, high << np.uint32(16) | low, active)

    return step


def extreme(dropping: Callable[..., Any], spreading: Callable[..., Any], negative: bool) -> Any:
    """Returns the builder of min or max, which drops a NaN unless it is told to spread it.

    −0 is less than 0.
    """

    def build(program: Program, i: Instruction) -> Step:
        drops = "f" in i.kind and "NaN" not in i.parts
        choose = dropping if drops else spreading

        def of_floats(a: Any, b: Any) -> Any:
            equal = np.where(np.signbit(a) == negative, a, b)
            return np.where(a == b, equal, choose(a, b))

        function = of_floats if "f" in i.kind else choose
        if i.kind.endswith("x2"):
            return of_halves(program, i, function)
        return elementwise(program, i, function)

    return build


def shift(function: Callable[..., Any]) -> Callable[[Program, Instruction], Step]:
    """Returns the builder of a shift; its distance always has 32 bits."""

    def build(program: Program, i: Instruction) -> Step:
        destination, a, b = i.operands
        size, number = size_of(i.kind), number_of(i.kind)
        read, distance = program.source(a, size), program.source(b, 4)

        def step(m: Any, active: Any) -> None:
            x = np.asarray(number(read(m)))
            n = np.asarray(distance(m))
            far, n = n >= 8 * size, np.minimum(n, 8 * size - 1).astype(x.dtype)
            m.put(destination, bits_of(function(x, n, far)), active)

        return step

    return build


def shifted_right(x: Any, n: Any, far: Any) -> Any:
    moved = np.asarray(x >> n)
    return moved if x.dtype.kind == "i" else np.where(far, x.dtype.type(0), moved)


def shifted_left(x: Any, n: Any, far: Any) -> Any:
    return np.where(far, x.dtype.type(0), x << n)


def funnel_shift(program: Program, i: Instruction) -> Step:
    """shf: the low 32 bits of (b, a) moved to the right."""
    if i.parts[1:3] != ("r", "wrap"):
        raise PtxFault(f"{'.'.join(i.parts)} is not known here")

    def function(a: Any, b: Any, c: Any) -> Any:
        low, high, n = (np.asarray(x).astype(np.uint64) for x in (a, b, c))
        return ((high << np.uint64(32) | low) >> (n & np.uint64(31))).astype(np.uint32)

    return elementwise(program, i, function)


def extract(program: Program, i: Instruction) -> Step:
    """bfe: the bits of a from b on, c of them."""
    if i.kind != "u32":
        raise PtxFault(f"bfe.{i.kind} is not known here")

    def function(a: Any, b: Any, c: Any) -> Any:
        a, b, c = (np.asarray(x).astype(np.uint64) for x in (a, b, c))
        ones = (np.uint64(1) << (c & BYTE)) - np.uint64(1)
        return (a >> (b & BYTE) & ones).astype(np.uint32)

    return elementwise(program, i, function)


def insert(program: Program, i: Instruction) -> Step:
    """bfi: b, whose bits from c on, d of them, are the lowest of a; numbers of 32 bits."""
    if i.kind != "b32":
        raise PtxFault(f"bfi.{i.kind} is not known here")

    def function(*operands: Any) -> Any:
        a, b, c, d = (np.asarray(x).astype(np.uint64) for x in operands)
        c, d = c & BYTE, d & BYTE
        ones = ((np.uint64(1) << d) - np.uint64(1)) << c
        return (b & ~ones | a << c & ones).astype(np.uint32)

    return elementwise(program, i, function)


def population(program: Program, i: Instruction) -> Step:
    """popc: how many bits are 1, a number of 32 bits."""
    return elementwise(program, i, lambda a: np.asarray(np.bitwise_count(a)).astype(np.uint32))


def permute(program: Program, i: Instruction) -> Step:
    """prmt: four bytes of a and b, chosen by the four low digits of c; from 8 on their signs."""

    def function(a: Any, b: Any, c: Any) -> Any:
        both = np.asarray(a).astype(np.uint64) | np.asarray(b).astype(np.uint64) << np.uint64(32)
        out = np.uint64(0)
        for k in range(4):
            digit = np.asarray(c).astype(np.uint64) >> np.uint64(4 * k)
            byte = both >> (digit & np.uint64(7)) * np.uint64(8) & BYTE
            byte = np.where(digit & np.uint64(8), (byte >> np.uint64(7)) * BYTE, byte)
            out = out | byte << np.uint64(8 * k)
        return np.asarray(out).astype(np.uint32)

    return elementwise(program, i, function)


BUILDERS = {
    "add": of_numbers(lambda a, b: a + b),
    "sub": of_numbers(lambda a, b: a - b),
    "mul": multiply,
    "mad": multiply_add,
    "fma": fused_multiply_add,
    "div": of_numbers(quotient),
    "neg": of_numbers(lambda a: -a),
    "abs": of_numbers(np.abs),
    "copysign": of_numbers(lambda a, b: np.copysign(b, a)),
    "min": extreme(np.fmin, np.minimum, True),
    "max": extreme(np.fmax, np.maximum, False),
    "and": of_numbers(lambda a, b: a & b),
    "or": of_numbers(lambda a, b: a | b),
    "xor": of_numbers(lambda a, b: a ^ b),
    "not": of_numbers(lambda a: ~a),
    "shl": shift(shifted_left),
    "shr": shift(shifted_right),
    "shf": funnel_shift,
    "bfe": extract,
    "bfi": insert,
    "popc": population,
    "prmt": permute,
    "ex2": rounded(np.exp2),
    "lg2": rounded(np.log2),
    "rcp": rounded(np.reciprocal),
    "sqrt": rounded(np.sqrt),
    "rsqrt": rounded(lambda x: 1 / np.sqrt(x)),
}
