# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes that Triton kernels move, by watching the interpreter's loads and stores.

    with traffic() as moved:
        rlkern.backends.triton.policy_loss(logits, ..., grad_logits)
    moved.bytes_loaded(logits), moved.bytes_stored(grad_logits), moved.outside

Works under TRITON_INTERPRET=1 with tensors on the CPU, where pointers are host addresses.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor


def _tensors(arguments: Iterable[object]) -> Iterator[Tensor]:
    """Yields the tensors among a launch's arguments and inside its tuples."""
    for x in arguments:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, tuple):
            yield from _tensors(x)


class Traffic:
    """Every access of the kernels run so far, by storage; outside counts those beyond them all."""

    def __init__(self) -> None:
        self.loads: dict[int, list[np.ndarray]] = defaultdict(list)
        self.stores: dict[int, list[np.ndarray]] = defaultdict(list)
        self.outside = 0
        self._storages: dict[int, int] = {}

    def enter_kernel(self, arguments: list[object]) -> None:
        """Makes the storages of a launch's arguments the only ones it may touch."""
        found = [x.untyped_storage() for x in _tensors(arguments)]
        self._storages = {s.data_ptr(): s.nbytes() for s in found}

    def record(self, to: dict[int, list[np.ndarray]], pointers, mask) -> None:
        """Puts the accesses that the mask lets through down to the storages they fall into."""
        addresses = np.asarray(pointers.data)
        taken = np.broadcast_to(np.asarray(mask.data).astype(bool), addresses.shape)
        addresses = addresses[taken].astype(np.int64)
        known = np.zeros(addresses.shape, bool)
        for begin, size in self._storages.items():
            hit = (addresses >= begin) & (addresses < begin + size)
            if hit.any():
                to[begin].append(addresses[hit] - begin)
            known |= hit
        self.outside += int((~known).sum())

    def _times(self, accesses: dict[int, list[np.ndarray]], x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        offsets = accesses.get(storage.data_ptr(), [])
        flat = np.concatenate(offsets) if offsets else np.zeros(0, np.int64)
        counts = np.bincount(
            flat // x.element_size(), minlength=storage.nbytes() // x.element_size()
        )
        return torch.from_numpy(counts).as_strided(x.shape, x.stride(), x.storage_offset())

    def times_loaded(self, x: Tensor) -> Tensor:
        """Returns how often each element was read."""
        return self._times(self.loads, x)

    def times_stored(self, x: Tensor) -> Tensor:
        """Returns how often each element was written."""
        return self._times(self.stores, x)

    def bytes_loaded(self, x: Tensor) -> int:
        """Returns the bytes read from the elements of x."""
        return int(self.times_loaded(x).sum()) * x.element_size()

    def bytes_stored(self, x: Tensor) -> int:
        """Returns the bytes written to the elements of x."""
        return int(self.times_stored(x).sum()) * x.element_size()


@contextlib.contextmanager
def traffic() -> Iterator[Traffic]:
    """Yields the Traffic of all kernels interpreted inside the with block."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    moved = Traffic()
    launch = GridExecutor.__call__
    # Every form of tl.load and tl.store ends in these two; their last arguments differ by version.
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def watched_launch(self, *args, **kwargs):
        moved.enter_kernel([*args, *kwargs.values()])
        return launch(self, *args, **kwargs)

    def watched_load(self, pointers, mask, *rest, **kwargs):
        moved.record(moved.loads, pointers, mask)
        return load(self, pointers, mask, *rest, **kwargs)

    def watched_store(self, pointers, value, mask, *rest, **kwargs):
        moved.record(moved.stores, pointers, mask)
        return store(self, pointers, value, mask, *rest, **kwargs)

    GridExecutor.__call__ = watched_launch
    InterpreterBuilder.create_masked_load = watched_load
    InterpreterBuilder.create_masked_store = watched_store
    try:
        yield moved
    finally:
        GridExecutor.__call__ = launch
        InterpreterBuilder.create_masked_load = load
        InterpreterBuilder.create_masked_store = store
