# SPDX-License-Identifier: Apache-2.0
"""Launches of the CUDA C++ kernels on CPU tensors, in the PTX that nvcc makes of them.

The host code is the emulator's library (cuda_emulator): what it would launch comes here. Compiled
for sm_80, whose blocks are no clusters. What sm_90 has beside that, barriers and memory of clusters
(mapa, barrier.cluster), mbarriers and the copies that come to them (cp.async.bulk, st.async), is
not known to this machine: its race detector orders accesses by barriers of a block or a warp alone.
The library runs those kernels as C++.
"""

import contextlib
import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from rlkern.backends.cuda import library

from .machine import Machine
from .program import Program, PtxFault
from .tensors import Allocations, buffers_of

NVCC = shutil.which("nvcc")
TARGET = "sm_80"
LAUNCHER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, *[ctypes.c_int64] * 4, ctypes.POINTER(ctypes.c_void_p)
)
# The types of 16 bits have other names there, which are part of a kernel's.
NAMES = {"NS_8bfloat16E": "13__nv_bfloat16", "DF16_": "6__half"}
MODULES = tuple(f"rlkern.backends.cuda.{x}" for x in ("library", "policy_loss", "token_logprob"))

# Read also where no row has written, and selected away there: it holds NaN before.
SELECTED = "statistics"


def compiled(sources: list[Path], include: Path, folder: Path) -> Path:
    """Returns where the PTX of all kernels is, with the lines that they come from."""
    whole, ptx = folder / "all.cu", folder / "all.ptx"
    whole.write_text("".join(f'#include "{source}"\n' for source in sources))
    command = [str(NVCC), "-std=c++17", "-O3", "-ptx", "-lineinfo", f"-arch={TARGET}"]
    subprocess.run([*command, f"-I{include}", str(whole), "-o", str(ptx)], check=True)
    return ptx


def version() -> str:
    """Returns what nvcc says of itself."""
    return subprocess.run([str(NVCC), "--version"], capture_output=True, text=True).stdout


def pointers(struct: ctypes.Structure) -> Iterator[tuple[str, int]]:
    """Yields (name, address) of what a struct points to."""
    for name, *_ in struct._fields_:
        value = getattr(struct, name)
        if isinstance(value, ctypes.Structure):
            yield from ((f"{name}.{inner}", at) for inner, at in pointers(value))
        elif isinstance(value, int):
            yield name, value


class Native:
    """The kernels of some PTX, and what calls hand to them."""

    def __init__(self, ptx: str) -> None:
        self.ptx, self.programs = ptx, dict[str, Program]()
        # A group that lies across words is shifted out of one word more, which may be nobody's.
        self.machine, self.allocations = Machine(all_readable=True), Allocations()
        self.tensors: dict[int, Tensor] = {}  # by where their elements begin
        self.struct: ctypes.Structure | None = None
        self.fault: BaseException | None = None

    def program(self, name: str) -> Program:
        for emulated, native in NAMES.items():
            name = name.replace(emulated, native)
        if name not in self.programs:
            self.programs[name] = Program(self.ptx, name)
        return self.programs[name]

    def noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of a tensor that also remembers the tensor."""

        def noted(x: Tensor | None) -> Any:
            if x is not None:
                self.tensors[x.data_ptr()] = x
            return function(x)

        return noted

    def call(self, name: str, arguments: ctypes.Structure) -> None:
        """Calls an operation of the library; raises what went wrong in a launch."""
        self.struct, self.fault = arguments, None
        error = getattr(library.load_library(), f"rlkern_cuda_{name}")(ctypes.byref(arguments))
        self.tensors.clear()
        if self.fault is not None:
            raise self.fault
        if error:
            raise RuntimeError(f"{name}: {library.error_sentence(error)}")

    def launch(self, name: bytes, blocks: int, cluster: int, threads: int, *rest: Any) -> int:
        """Executes a launch; the library hears of a fault as a number, its caller as it is."""
        try:
            self._launch(self.program(name.decode()), blocks, cluster, threads, *rest)
        except BaseException as fault:
            self.fault = fault
            return 1
        return 0

    def _launch(
        self, program: Program, blocks: int, cluster: int, threads: int, shared: int, places: Any
    ) -> None:
        if cluster != 1 or threads != program.threads:
            raise PtxFault(f"{program.name}: {cluster} blocks a cluster, {threads} threads")
        assert self.struct is not None
        held = [(n, self.tensors[at]) for n, at in pointers(self.struct) if at in self.tensors]
        values = [ctypes.string_at(place, p.bytes) for place, p in zip(places, program.parameters)]
        buffers = [
            b._replace(written=None) if b.name == SELECTED else b
            for b in buffers_of(held, self.allocations)
        ]
        self.machine.launch(program, values, buffers, blocks, shared)


@contextlib.contextmanager
def emulated(ptx: str) -> Iterator[Machine]:
    """Executes the cuda backend's launches inside the with block."""
    native = Native(ptx)
    launcher = LAUNCHER(native.launch)
    with contextlib.ExitStack() as stack:
        for module in MODULES:
            for name in ("address", "grid"):
                function = native.noting(getattr(library, name))
                stack.enter_context(mock.patch(f"{module}.{name}", function, create=True))
            stack.enter_context(mock.patch(f"{module}.call", native.call))
        stack.enter_context(native.allocations.watched())
        library.load_library().emulator_launch_by(launcher)
        stack.callback(library.load_library().emulator_launch_by, LAUNCHER())
        yield native.machine
