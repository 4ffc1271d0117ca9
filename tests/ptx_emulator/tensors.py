# SPDX-License-Identifier: Apache-2.0
"""The tensors of a launch as memory of the machine."""

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from .memory import Buffer

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
