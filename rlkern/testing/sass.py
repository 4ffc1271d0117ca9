# SPDX-License-Identifier: Apache-2.0
"""The loops of a compiled kernel, read from its machine code (SASS)."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton

_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)\s*(.*?);")
_LOADS, _STORES = ("LDG", "LDGSTS"), ("STG",)
# Bytes of an access; one that names no width has four.
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


class Instruction(NamedTuple):
    """An instruction, where it stands and, of a branch, where that leads."""

    address: int
    name: str  # with its suffixes, as LDG.E.128
    target: int | None

    @property
    def stem(self) -> str:
        return self.name.partition(".")[0]

    @property
    def width(self) -> int:
        """Returns the bytes that a load or store moves for each thread."""
        return next((_WIDTHS[s] for s in self.name.split(".") if s in _WIDTHS), 4)


class Loop(NamedTuple):
    """A loop without another in it: what one round of a thread does."""

    instructions: int
    mufu: int  # ex2, rcp and others of the special function unit
    barriers: int
    shuffles: int
    loads: tuple[int, ...]  # bytes of each from global memory
    stores: tuple[int, ...]


def instructions(text: str) -> Iterator[Instruction]:
    """Yields the instructions of a disassembly.

    >>> text = "  /*0a50*/   @!P2 BRA 0x21d0 ;   /* 0x00 */"
    >>> list(instructions(text))
    [Instruction(address=2640, name='BRA', target=8656)]
    """
    for line in text.splitlines():
        found = _LINE.match(line)
        if found:
            address, name, operands = found.groups()
            where = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
            yield Instruction(int(address, 16), name, int(where[1], 16) if where else None)


def loops(text: str) -> list[Loop]:
    """Returns the innermost loops of a kernel, in the order of its code."""
    code = list(instructions(text))
    spans = [(i.target, i.address) for i in code if i.target is not None and i.target < i.address]
    # The last branch back to a place ends its loop.
    ends = {begin: max(end for b, end in spans if b == begin) for begin, _ in spans}
    inner = [
        (begin, end)
        for begin, end in sorted(ends.items())
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in ends.items())
    ]
    return [_loop([i for i in code if begin <= i.address <= end]) for begin, end in inner]


def _loop(body: list[Instruction]) -> Loop:
    def count(*stems: str) -> int:
        return sum(i.stem in stems for i in body)

    return Loop(
        len(body),
        count("MUFU"),
        count("BAR"),
        count("SHFL"),
        tuple(i.width for i in body if i.stem in _LOADS),
        tuple(i.width for i in body if i.stem in _STORES),
    )


def disassembled(kernel: Any) -> str:
    """Returns the machine code of a compiled kernel as text."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", str(cubin)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
