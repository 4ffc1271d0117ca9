# SPDX-License-Identifier: Apache-2.0
"""The text of a kernel, taken apart into instructions."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .values import POISON, UNSIGNED, literal, size_of

# The one name of shared memory that Triton uses; it begins at 0.
SHARED = "global_smem"
SPECIAL = ("%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x", "%laneid")


class PtxFault(Exception):
    """What a GPU would fault on or leave undefined, or what this machine does not know."""


class Instruction(NamedTuple):
    """One instruction: `@!%p1 add.s32 %r1, %r2, 3;` has the parts add and s32."""

    parts: tuple[str, ...]
    operands: tuple[Any, ...]  # texts; a tuple of texts where a vector stands in braces
    guard: str | None
    negated: bool
    where: str  # file and line of the source

    @property
    def kind(self) -> str:
        """The type of its result."""
        return self.parts[-1]


def split_operands(text: str) -> tuple[Any, ...]:
    """Returns the operands of an instruction.

    >>> split_operands("{%r1, %r2}, [%rd3+4], 0x10")
    (('%r1', '%r2'), '[%rd3+4]', '0x10')
    """
    pieces = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", text)
    return tuple(
        tuple(x.strip() for x in piece[1:-1].split(",")) if piece[0] == "{" else piece
        for piece in (piece.strip() for piece in pieces)
        if piece
    )


class Program:
    """A kernel: its parameters, its instructions and where its labels stand."""

    def __init__(self, ptx: str) -> None:
        entry = re.search(r"\.visible \.entry (\w+)\((.*?)\)\s*(.*?)\{(.*?)\n\}", ptx, re.S)
        if entry is None:
            raise PtxFault("no kernel in this PTX")
        self.name, parameters, limits, body = entry.groups()
        self.parameters = re.findall(r"\.param \.(\w+)[^,\n]*?(\w+_param_\d+)", parameters)
        threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", limits)
        if threads is None:
            raise PtxFault(f"{self.name} does not say how many threads it has")
        self.threads = int(threads[1])
        self._files = dict(re.findall(r'\.file\s+(\d+) "([^"]+)"', ptx))
        self._kinds: dict[str, str] = {}  # of registers, by prefix
        self.labels: dict[str, int] = {}
        self.code: list[Instruction] = []
        self._where = ""
        for line in body.split("\n"):
            self._read(line.split("//")[0].strip())
        self.steps: list[Any] = [None] * len(self.code)  # what the machine makes of each

    def _read(self, line: str) -> None:
        label = re.fullmatch(r"([$\w]+):", line)
        if label:
            self.labels[label[1]] = len(self.code)
        elif line.startswith(".loc"):
            _, file, row, *_ = line.split()
            self._where = f"{self._files.get(file, file).rsplit('/', 1)[-1]}:{row}"
        elif line.startswith(".reg"):
            kind, prefix = re.findall(r"\.reg \.(\w+)\s+(%\w+?)<", line)[0]
            self._kinds[prefix] = kind
        elif line.startswith(".") and not line.startswith(".pragma"):
            raise PtxFault(f"{self.name}: unknown directive {line}")
        elif not line.startswith("."):
            for statement in line.split(";"):
                self._add(statement.strip())

    def _add(self, statement: str) -> None:
        if statement in ("", "{", "}"):
            return
        found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)(?:\s+(.*))?", statement)
        if found is None:
            raise PtxFault(f"{self.name}: not understood: {statement}")
        negated, guard, op, operands = found.groups()
        self.code.append(
            Instruction(
                tuple(op.split(".")),
                split_operands(operands or ""),
                guard,
                negated == "!",
                self._where,
            )
        )

    def size(self, register: str) -> int:
        """Returns the bytes of a register, 0 for a predicate."""
        return size_of(self._kinds[register.rstrip("0123456789")])

    def source(self, text: str, size: int) -> Callable[[Any], Any]:
        """Returns the function of the machine that reads an operand of so many bytes."""
        if text.startswith("%") and (text[-1].isdigit() or text in SPECIAL):
            absent = POISON[size] if size else np.False_
            return lambda m: m.registers.get(text, absent)
        if size == 0:
            value = np.bool_(text != "0")
        else:
            value = UNSIGNED[size](0) if text == SHARED else literal(text, size)
        if value is None:
            raise PtxFault(f"unknown operand {text}")
        return lambda m: value

    def address(self, text: str) -> Callable[[Any], Any]:
        """Returns the function of the machine that computes `[register + number]`."""
        base, _, number = text.strip("[]").replace(" ", "").partition("+")
        size = 4 if base == SHARED else self.size(base)
        offset = UNSIGNED[size](int(number or "0", 0) % (1 << 8 * size))
        read = self.source(base, size)
        return lambda m: read(m) + offset
