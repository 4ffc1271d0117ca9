# SPDX-License-Identifier: Apache-2.0
"""Kernels of a few lines, for the tests of the machine itself."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .machine import Machine
from .memory import Buffer
from .program import Program
from .values import FLOAT, SIGNED, UNSIGNED, size_of

REGISTERS = {"pred": "%p", "b16": "%rs", "b32": "%r", "b64": "%rd"}
# Where buffers lie: apart, and each at a multiple of 4096 bytes.
BASE = 0x10000
PREFIX = {0: "%p", 2: "%rs", 4: "%r", 8: "%rd"}


def program(body: str, pointers: int, threads: int) -> Program:
    """Returns a kernel whose parameters are pointers, in %rd100 and up; %r100 is the thread."""
    names = [f"k_param_{n}" for n in range(pointers)]
    lines = [f"ld.param.b64 %rd{100 + n}, [{name}];" for n, name in enumerate(names)]
    files = [f".reg .{kind} {prefix}<200>;" for kind, prefix in REGISTERS.items()]
    parameters = ",\n".join(f".param .u64 .ptr .global .align 1 {name}" for name in names)
    head = f".visible .entry k(\n{parameters}\n)\n.reqntid {threads}\n{{\n"
    text = "\n".join([*files, *lines, "mov.u32 %r100, %tid.x;", body, "ret;"])
    return Program(f"{head}{text}\n}}\n")


def run(
    body: str,
    *arrays: Any,
    threads: int = 32,
    blocks: int = 1,
    shared: int = 0,
    fresh: Sequence[int] = (),
) -> Machine:
    """Runs a kernel on arrays, which change in place; those numbered in fresh hold nothing yet."""
    machine = Machine()
    buffers, address = [], BASE
    for n, array in enumerate(arrays):
        data = array.view(np.uint8).reshape(-1)
        written = np.zeros(len(data), bool) if n in fresh else None
        buffers.append(Buffer(f"array{n}", address, data, written))
        address += (len(data) // 4096 + 2) * 4096
    pointers = [buffer.address for buffer in buffers]
    machine.launch(program(body, len(arrays), threads), pointers, buffers, blocks, shared)
    return machine


def dtype_of(kind: str) -> Any:
    """Returns the NumPy type of which a PTX type is made; 16-bit floats are their bits."""
    size = size_of(kind)
    floats = FLOAT if size > 2 else {}
    return floats.get(kind) or (SIGNED if kind[0] == "s" else UNSIGNED)[size]


def apply(instruction: str, result: str, operands: Sequence[tuple[str, Any]]) -> Any:
    """Returns what an instruction makes of arrays: `add.f32 {0}, {1}, {2};` has {0} as result.

    operands are (type, array); a result of type pred comes back as 0 and 1.
    """
    count = len(operands[0][1])
    out = np.zeros(count, np.uint32 if result == "pred" else dtype_of(result))
    numbered = {size: itertools.count(1) for size in PREFIX}

    def register(kind: str) -> str:
        return f"{PREFIX[size_of(kind)]}{next(numbered[size_of(kind)])}"

    def at(n: int, size: int) -> str:
        return (
            f"mul.wide.u32 %rd{50 + n}, %r100, {size}; "
            f"add.s64 %rd{50 + n}, %rd{50 + n}, %rd{100 + n};"
        )

    names, lines = [register(result)], []
    for n, (kind, array) in enumerate(operands, 1):
        names.append(register(kind))
        size = array.dtype.itemsize
        lines += [at(n, size), f"ld.global.b{8 * size} {names[-1]}, [%rd{50 + n}];"]
    lines += [instruction.format(*names), at(0, out.itemsize)]
    value = names[0]
    if result == "pred":
        lines.append(f"selp.b32 %r99, 1, 0, {value};")
        value = "%r99"
    lines.append(f"st.global.b{8 * out.itemsize} [%rd50], {value};")
    run("\n".join(lines), out, *(array for _, array in operands), threads=count)
    return out


def elementwise(function: Callable[..., Any], dtype: Any, *arrays: Any) -> Any:
    """Returns what a function of Python's numbers makes of arrays, cut to the width of a type."""
    rows = [function(*(x.item() for x in row)) for row in zip(*arrays)]
    if np.dtype(dtype).kind == "f":
        return np.array(rows, np.float64).astype(dtype)
    bits = 8 * np.dtype(dtype).itemsize
    unsigned = np.array([int(x) % (1 << bits) for x in rows], f"u{bits // 8}")
    return unsigned.view(dtype)
