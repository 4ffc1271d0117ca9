# SPDX-License-Identifier: Apache-2.0
"""Launches of Triton kernels on CPU tensors, compiled for a GPU and executed by the machine.

Of a process without TRITON_INTERPRET=1.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

from rlkern.backends import triton as kernels
from rlkern.testing import aot

from .machine import Machine
from .program import Program
from .tensors import Allocations, buffers_of

_programs: dict[str, Program] = {}  # by their text


def leaves(name: str, kind: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields (name, value) of what a compiled kernel takes at run time, in order."""
    if isinstance(kind, tuple):
        names = getattr(value, "_fields", range(len(kind)))
        for part, k, v in zip(names, kind, value):
            yield from leaves(f"{name}.{part}", k, v)
    elif kind != "constexpr":
        yield name, value


@contextlib.contextmanager
def emulated(target: str, edit: Callable[[str], str] | None = None) -> Iterator[Machine]:
    """Executes launches inside the with block, compiled for a target; edit changes their PTX."""
    machine, allocations = Machine(), Allocations()

    def execute(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = compile_only(self, *args, grid=grid, warmup=warmup, **kwargs)
        own = {name: value for name, value in kwargs.items() if name in self.arg_names}
        bound = inspect.signature(self.fn).bind(*args, **own).arguments
        arguments = [
            leaf
            for name, kind in kernel.src.signature.items()
            for leaf in leaves(name, kind, bound[name])
        ]
        ptx = kernel.asm["ptx"] if edit is None else edit(kernel.asm["ptx"])
        if ptx not in _programs:
            _programs[ptx] = Program(ptx)
        values = [x.data_ptr() if isinstance(x, Tensor) else x for _, x in arguments]
        (blocks,) = grid
        machine.launch(
            _programs[ptx], values, buffers_of(arguments, allocations),
            blocks, kernel.metadata.shared,
        )  # fmt: skip
        return kernel

    with aot.compiling(target), allocations.watched():
        compile_only = JITFunction.run
        # The backend serves CPU tensors while its kernels are executed here.
        with (
            mock.patch.object(JITFunction, "run", execute),
            mock.patch.object(kernels, "INTERPRETED", True),
        ):
            yield machine


def skip_the_assembler() -> None:
    """Lets compilation end with PTX in this process: machine code takes as long, and is not used.

    What is compiled does not belong into the cache of other processes.
    """
    CUDABackend.make_cubin = lambda self, *_: b""
