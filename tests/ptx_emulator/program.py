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


def closing(text: str) -> int:
    """Returns where the brace stands that closes one opened before the text.

    >>> closing("mov {a, b}, c; } mov {")
    15
    """
    depth = 1
    for brace in re.finditer("[{}]", text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise PtxFault("a brace is not closed")


class Parameter(NamedTuple):
    """A parameter of a kernel: a number of a type, or the bytes of a struct."""

    name: str
    kind: str
    offset: int  # where it lies among the others
    bytes: int


def laid_out(text: str) -> tuple[list[Parameter], int]:
    """Returns a kernel's parameters, and how many bytes they take together.

    >>> [p[1:] for p in laid_out(".param .u32 k_param_0, .param .align 8 .b8 k_param_1[24]")[0]]
    [('u32', 0, 4), ('b8', 8, 24)]
    """
    pattern = r"\.param (?:\.align \d+ )?\.(\w+)[^,\n]*?(\w+_param_\d+)(?:\[(\d+)\])?"
    found, end = [], 0
    for kind, name, count in re.findall(pattern, text):
        begin, size = -(-end // 8) * 8, size_of(kind) * int(count or 1)
        found.append(Parameter(name, kind, begin, size))
        end = begin + size
    return found, end


class Program:
    """A kernel: its parameters, its instructions and where its labels stand.

    Of PTX with several kernels the first, or the one that is named.
    """

    def __init__(self, ptx: str, name: str = r"\w+") -> None:
        entry = re.search(rf"\.visible \.entry ({name})\((.*?)\)\s*(.*?)\{{", ptx, re.S)
        if entry is None:
            raise PtxFault("no such kernel in this PTX")
        self.name, parameters, limits = entry.groups()
        body = ptx[entry.end() : entry.end() + closing(ptx[entry.end() :])]
        self.parameters, self.parameter_bytes = laid_out(parameters)
        shared = re.findall(r"^\.extern \.shared .* (\w+)\[\];", ptx, re.M)
        # What a name stands for: an address.
        self._names = dict.fromkeys((SHARED, *shared), 0)
        self._names |= {p.name: p.offset for p in self.parameters}
        threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", limits)
        if threads is None:
            raise PtxFault(f"{self.name} does not say how many threads it has")
        self.threads = int(threads[1])
        self._files = dict(re.findall(r'\.file\s+(\d+) "([^"]+)"', ptx))
        self._kinds: dict[str, str] = {}  # of registers, by prefix or name
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
        else:
            for statement in line.split(";"):
                self._add(statement.strip().lstrip("{} \t"))  # braces of inline assembly

    def _declare(self, statement: str) -> None:
        if statement.startswith(".pragma"):
            return
        found = re.fullmatch(r"\.reg \.(\w+)\s+(.+)", statement)
        if found is None:
            raise PtxFault(f"{self.name}: unknown directive {statement}")
        for name in found[2].split(","):
            self._kinds[name.strip().partition("<")[0]] = found[1]

    def _add(self, statement: str) -> None:
        if not statement:
            return
        if statement[0] == ".":
            return self._declare(statement)
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

    def _kind(self, text: str) -> str | None:
        """Returns the type of a register, None for what is none."""
        return self._kinds.get(text) or self._kinds.get(text.rstrip("0123456789"))

    def size(self, register: str) -> int:
        """Returns the bytes of a register, 0 for a predicate."""
        kind = self._kind(register)
        assert kind is not None, register
        return size_of(kind)

    def source(self, text: str, size: int) -> Callable[[Any], Any]:
        """Returns the function of the machine that reads an operand of so many bytes."""
        if text in SPECIAL or self._kind(text):
            absent = POISON[size] if size else np.False_
            return lambda m: m.registers.get(text, absent)
        if size == 0:
            value = np.bool_(text != "0")
        elif text in self._names:
            value = UNSIGNED[size](self._names[text])
        else:
            value = literal(text, size)
        if value is None:
            raise PtxFault(f"unknown operand {text}")
        return lambda m: value

    def address(self, text: str) -> Callable[[Any], Any]:
        """Returns the function of the machine that computes `[register + number]`."""
        base, _, number = text.strip("[]").replace(" ", "").partition("+")
        size = 4 if base in self._names else self.size(base)
        offset = UNSIGNED[size](int(number or "0", 0) % (1 << 8 * size))
        read = self.source(base, size)
        return lambda m: read(m) + offset
