# SPDX-License-Identifier: Apache-2.0
"""Launches of Triton kernels on CPU tensors, compiled for a GPU and executed by the machine.

Of a process without TRITON_INTERPRET=1.
"""

import contextlib
import ctypes
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

from rlkern.backends import triton as kernels
from rlkern.testing import aot

from .machine import Machine
from .memory import Buffer
from .program import Program

_programs: dict[str, Program] = {}  # by their text
ALLOCATORS = ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty"))


def bytes_at(address: int, size: int) -> Any:
    """Returns the memory of this process at an address."""
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


class Fresh(NamedTuple):
    """Memory that was allocated and not filled: which of its bytes kernels have written."""

    tensor: Tensor  # held, so that its address is not given to another
    version: int
    written: Any


class Allocations:
    """The fresh memory of a run, filled with NaN."""

    def __init__(self) -> None:
        self._fresh: dict[int, Fresh] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Notes what is allocated inside the with block."""
        with contextlib.ExitStack() as stack:
            for owner, name in ALLOCATORS:
                allocate = self._noting(getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, allocate))
            yield

    def _noting(self, allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def noting(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            storage = tensor.untyped_storage()
            if tensor.device.type == "cpu" and storage.nbytes():
                bytes_at(storage.data_ptr(), storage.nbytes())[:] = 0xFF
                written = np.zeros(storage.nbytes(), bool)
                self._fresh[storage.data_ptr()] = Fresh(tensor, tensor._version, written)
            return tensor

        return noting

    def written(self, tensor: Tensor, address: int, size: int) -> Any:
        """Returns which of these bytes of a tensor were written; None if all were."""
        begin = tensor.untyped_storage().data_ptr()
        fresh = self._fresh.get(begin)
        if fresh is None:
            return None
        if fresh.tensor._version != fresh.version:  # torch wrote to it
            fresh.written[:] = True
        return fresh.written[address - begin : address - begin + size]


def dense_runs(tensor: Tensor) -> list[tuple[int, int]]:
    """Returns [(address, bytes)] of the elements of a tensor, without the gaps of its strides.

    >>> x = torch.zeros(2, 3, 8)
    >>> [(address - x.data_ptr(), size) for address, size in dense_runs(x[:, :2, :5])]
    [(0, 20), (32, 20), (96, 20), (128, 20)]
    >>> [(address - x.data_ptr(), size) for address, size in dense_runs(x[:, :2])]
    [(0, 64), (96, 64)]
    """
    if not tensor.numel():
        return []
    run, outer = 1, []
    dimensions = zip(tensor.stride(), tensor.shape)
    for stride, size in sorted(d for d in dimensions if d[0] and d[1] > 1):
        if stride == run:
            run *= size
        else:
            outer.append(range(0, stride * size, stride))
    item = tensor.element_size()
    begins = sorted(tensor.data_ptr() + item * sum(at) for at in itertools.product(*outer))
    return [(begin, run * item) for begin in begins]


def leaves(name: str, kind: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields (name, value) of what a compiled kernel takes at run time, in order."""
    if isinstance(kind, tuple):
        names = getattr(value, "_fields", range(len(kind)))
        for part, k, v in zip(names, kind, value):
            yield from leaves(f"{name}.{part}", k, v)
    elif kind != "constexpr":
        yield name, value


def buffers_of(arguments: list[tuple[str, Any]], allocations: Allocations) -> list[Buffer]:
    """Returns the memory of the tensors among the arguments; what overlaps becomes one buffer."""
    runs = [
        (address, address + size, name, tensor)
        for name, tensor in arguments
        if isinstance(tensor, Tensor)
        for address, size in dense_runs(tensor)
    ]
    merged: list[list[Any]] = []
    for begin, end, name, tensor in sorted(runs, key=lambda run: run[:2]):
        if merged and begin < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end, name, tensor])
    return [
        Buffer(
            name,
            begin,
            bytes_at(begin, end - begin),
            allocations.written(tensor, begin, end - begin),
            min(tensor.element_size(), 2),
        )
        for begin, end, name, tensor in merged
    ]


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
