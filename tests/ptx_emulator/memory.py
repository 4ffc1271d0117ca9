# SPDX-License-Identifier: Apache-2.0
"""Memory that knows its bounds, which bytes were written, and who touched what."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .program import PtxFault
from .shadow import WARP, Conflict, Shadow
from .values import UNSIGNED

SECTOR = 32


class Access(NamedTuple):
    """What threads ask for: count numbers of so many bytes at each address."""

    address: Any
    size: int
    count: int
    thread: Any

    @property
    def width(self) -> int:
        return self.size * self.count

    def of(self, chosen: Any, address: Any) -> "Access":
        """Returns the same of some threads, at other addresses."""
        return self._replace(address=address, thread=self.thread[chosen])


class Buffer(NamedTuple):
    """Bytes that a launch may touch, at an address; written says which of them hold something."""

    name: str
    address: int
    data: Any
    written: Any = None  # None: all
    granule: int = 2  # bytes of a place, of which threads may write the whole only


class Region:
    """A buffer with its shadow; its functions take offsets, and return conflicts."""

    def __init__(self, buffer: Buffer, shadow: Shadow) -> None:
        self.buffer, self.shadow = buffer, shadow
        self.data, self.written = buffer.data, buffer.written

    def _bytes(self, access: Access) -> Any:
        return access.address[:, None] + np.arange(access.width)

    def _values(self, at: Any, access: Access) -> Any:
        raw = np.ascontiguousarray(self.data[at])
        return raw.view(UNSIGNED[access.size]).reshape(-1, access.count)

    def load(self, access: Access) -> tuple[Any, list[Conflict]]:
        """Returns (numbers (threads, count), conflicts); raises PtxFault for what nobody wrote."""
        at = self._bytes(access)
        if self.written is not None and not self.written[at].all():
            first = int(np.flatnonzero(~self.written[at].all(1))[0])
            raise PtxFault(
                f"reads {self.buffer.name}+{int(access.address[first])}, which nobody wrote"
            )
        return self._values(at, access), self.touch(access)

    def touch(self, access: Access) -> list[Conflict]:
        """Notes a read; returns its conflicts."""
        return self.shadow.read(access.address, access.width, access.thread)

    def store(self, access: Access, values: Any) -> list[Conflict]:
        """Writes numbers (threads, count); returns the conflicts."""
        if access.width < self.shadow.granule:
            raise PtxFault("single bytes written where races of larger places are looked for")
        at = self._bytes(access)
        changes = (self._values(at, access) != values).any(1)
        conflicts = self.shadow.write(access.address, access.width, access.thread, changes)
        self.data[at] = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
        if self.written is not None:
            self.written[at] = True
        lost = np.flatnonzero((self._values(at, access) != values).any(1))
        if lost.size:
            place = int(access.address[lost[0]]) // self.shadow.granule
            winner, loser = int(self.shadow.writers.thread[place]), int(access.thread[lost[0]])
            conflicts.append(Conflict("two values in one instruction", place, winner, loser))
        return conflicts


class Traffic:
    """Requests of warps for global memory, the sectors they fetch, and the bytes of these used."""

    def __init__(self) -> None:
        self.requests = self.sectors = self.bytes = 0

    def add(self, access: Access) -> None:
        """Counts the requests of one instruction."""
        warp = access.thread.astype(np.int64) // WARP << 48
        first = warp + access.address.astype(np.int64)
        used = np.unique(first)
        ends = np.concatenate([first // SECTOR, (first + access.width - 1) // SECTOR])
        self.requests += len(np.unique(warp))
        self.sectors += len(np.unique(ends))
        self.bytes += access.width * len(used)

    @property
    def used(self) -> float:
        """Which part of the bytes fetched was asked for."""
        return self.bytes / (SECTOR * self.sectors) if self.sectors else 1.0


def aligned(access: Access) -> None:
    """Raises PtxFault if an address is no multiple of the width of the access."""
    if (access.address.astype(np.int64) % access.width).any():
        raise PtxFault(f"misaligned access of {access.width} bytes")


class GlobalMemory:
    """The buffers of a launch, by address."""

    def __init__(self, regions: list[Region]) -> None:
        self.regions = sorted(regions, key=lambda r: r.buffer.address)
        self.begin = np.array([r.buffer.address for r in self.regions], np.int64)
        self.end = self.begin + [len(r.data) for r in self.regions]

    def locate(self, access: Access) -> Iterator[tuple[Any, Region, Access]]:
        """Yields (which threads, region, their access); raises PtxFault out of bounds."""
        address = access.address.astype(np.int64)
        which = np.searchsorted(self.begin, address, side="right") - 1
        inside = (which >= 0) & (address + access.width <= self.end[which])
        if not inside.all():
            first = int(address[~inside][0])
            raise PtxFault(f"out of bounds: {access.width} bytes at {self._near(first)}")
        for k in np.unique(which):
            chosen = which == k
            yield chosen, self.regions[k], access.of(chosen, address[chosen] - self.begin[k])

    def _near(self, address: int) -> str:
        """Returns the address, told from the nearest buffer before it."""
        before = [r.buffer for r in self.regions if r.buffer.address <= address]
        return f"{before[-1].name}+{address - before[-1].address}" if before else hex(address)
