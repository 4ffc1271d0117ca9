# SPDX-License-Identifier: Apache-2.0
"""Who wrote and read each place of a memory last; finds accesses that nothing orders.

Two accesses of different threads, one of them a write, are a race unless a barrier lies between
them: one of the block, or one of the warp if both are of one warp. Nothing orders threads of
different blocks. What order this machine runs threads in plays no part. A write of what is there
already is none, because Triton lets several threads write one value.
"""

from typing import Any, NamedTuple

import numpy as np

WARP = 32


class Race(NamedTuple):
    """Two accesses that nothing orders, the first of their kind at a line."""

    kernel: str
    memory: str  # shared, or the name of a tensor
    kind: str  # what came first, then what this line does
    where: str
    threads: tuple[int, int]
    offset: int  # bytes from where the memory begins


class Moment(NamedTuple):
    """Threads, where they belong, and how many barriers they have passed."""

    thread: Any
    block: Any
    warp: Any
    epoch: Any
    warp_epoch: Any


class Clock:
    """How many barriers the threads of a launch have passed: of their block, and of their warp."""

    def __init__(self, threads: int, blocks: int) -> None:
        self.threads, self.warps = threads, -(-threads // WARP)  # of a block
        self.epoch = np.zeros(blocks, np.int32)
        self.warp_epoch = np.zeros(blocks * self.warps, np.int32)

    def block_of(self, thread: Any) -> Any:
        return thread // self.threads

    def warp_of(self, thread: Any) -> Any:
        """Returns the warps of threads, counted through the launch; −1 for no thread."""
        return self.block_of(thread) * self.warps + thread % self.threads // WARP

    def now(self, thread: Any) -> Moment:
        """Returns the moment at which these threads are."""
        block, warp = self.block_of(thread), self.warp_of(thread)
        return Moment(thread, block, warp, self.epoch[block], self.warp_epoch[warp])

    def pass_barrier(self, block: int) -> None:
        """All threads of a block have met."""
        self.epoch[block] += 1
        self.warp_epoch[block * self.warps : (block + 1) * self.warps] += 1

    def pass_warp_barrier(self, thread: Any) -> None:
        """The warps of these threads have met."""
        self.warp_epoch[np.unique(self.warp_of(thread))] += 1


class Relation(NamedTuple):
    """How accesses lie to the ones before them at the same places, element by element."""

    other: Any  # thread, −1 if there was none
    other_block: Any
    same_warp: Any
    same_epoch: Any  # no barrier of their block in between
    same_warp_epoch: Any  # no barrier of their warp in between

    @property
    def far(self) -> Any:
        return (self.other >= 0) & self.other_block


class Writers:
    """The last thread that wrote each place, and when."""

    def __init__(self, places: int) -> None:
        self.thread = np.full(places, -1, np.int32)
        self.epoch = np.zeros(places, np.int32)
        self.warp_epoch = np.zeros(places, np.int32)

    def relation(self, at: Any, moment: Moment, clock: Clock) -> Relation:
        """Returns how accesses lie to the last ones recorded."""
        other = self.thread[at]
        block, warp = clock.block_of(other), clock.warp_of(other)
        old, same_block = other >= 0, block == moment.block
        same_warp = old & (warp == moment.warp)
        return Relation(
            other,
            ~same_block,
            same_warp,
            old & same_block & (self.epoch[at] == moment.epoch),
            same_warp & (self.warp_epoch[at] == moment.warp_epoch),
        )

    def unordered(self, at: Any, moment: Moment, r: Relation) -> Any:
        """Returns which accesses are not ordered after the last one recorded."""
        apart = r.same_epoch & ~r.same_warp
        return r.far | apart | (r.same_warp_epoch & (r.other != moment.thread))

    def record(self, at: Any, moment: Moment) -> None:
        """Notes these accesses as the last ones."""
        self.thread[at] = moment.thread
        self.epoch[at], self.warp_epoch[at] = moment.epoch, moment.warp_epoch


class Readers(Writers):
    """The last thread that read each place, when, and whether others did so before it."""

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self.lanes = np.zeros(places, bool)  # of its warp, in the same epoch of the warp
        self.warps = np.zeros(places, bool)  # of its block, in the same epoch of the block
        self.blocks = np.zeros(places, bool)  # of other blocks, at any time

    def unordered(self, at: Any, moment: Moment, r: Relation) -> Any:
        apart = r.same_epoch & (~r.same_warp | self.warps[at])
        close = r.same_warp_epoch & ((r.other != moment.thread) | self.lanes[at])
        return r.far | self.blocks[at] | apart | close

    def add(self, at: Any, moment: Moment, r: Relation, clock: Clock) -> None:
        """Notes these accesses beside the ones before them."""
        lanes = r.same_warp_epoch & (self.lanes[at] | (r.other != moment.thread))
        warps = r.same_epoch & (self.warps[at] | ~r.same_warp)
        self.blocks[at] |= r.far
        self.lanes[at], self.warps[at] = lanes, warps
        self.record(at, moment)
        # Several threads of one instruction may read one place: the last of them is recorded.
        last = self.thread[at]
        others = np.flatnonzero(last != moment.thread)
        if others.size:
            at, last = at[others], last[others]
            block, warp = clock.block_of(last), clock.warp_of(last)
            self.lanes[at[warp == moment.warp[others]]] = True
            self.warps[at[(warp != moment.warp[others]) & (block == moment.block[others])]] = True
            self.blocks[at[block != moment.block[others]]] = True


class Conflict(NamedTuple):
    """A place that two threads touch in no order."""

    kind: str
    place: int
    other: int
    thread: int


class Shadow:
    """What is known of a memory of so many bytes; its places are granule bytes wide."""

    def __init__(self, size: int, granule: int, clock: Clock) -> None:
        places = -(-size // granule)
        self.granule, self.clock = granule, clock
        self.writers, self.readers = Writers(places), Readers(places)
        self.pending = np.full(places, -1, np.int32)  # whose asynchronous copy is on its way

    def _places(self, at: Any, size: int, thread: Any) -> tuple[Any, Moment, int]:
        count = max(1, size // self.granule)
        places = (at[:, None] // self.granule + np.arange(count)).ravel()
        return places, self.clock.now(np.repeat(thread, count)), count

    def read(self, at: Any, size: int, thread: Any) -> list[Conflict]:
        """Notes reads of so many bytes at these offsets; returns the conflicts."""
        places, moment, _ = self._places(at, size, thread)
        before = self.writers.relation(places, moment, self.clock)
        bad = self.writers.unordered(places, moment, before)
        readers = self.readers.relation(places, moment, self.clock)
        self.readers.add(places, moment, readers, self.clock)
        waits = self.pending[places]
        return [
            *_first("read after write", bad, places, before.other, moment),
            *_first("read of a copy on its way", waits >= 0, places, waits, moment),
        ]

    def write(self, at: Any, size: int, thread: Any, changes: Any) -> list[Conflict]:
        """Notes writes, of which some change nothing; returns the conflicts."""
        places, moment, count = self._places(at, size, thread)
        writers = self.writers.relation(places, moment, self.clock)
        readers = self.readers.relation(places, moment, self.clock)
        twice = np.repeat(changes, count) & self.writers.unordered(places, moment, writers)
        bad = self.readers.unordered(places, moment, readers)
        self.writers.record(places, moment)
        waits = self.pending[places]
        over = (waits >= 0) & (waits != moment.thread)
        return [
            *_first("write after write", twice, places, writers.other, moment),
            *_first("write after read", bad, places, readers.other, moment),
            *_first("write over a copy on its way", over, places, waits, moment),
        ]

    def begin_copy(self, at: Any, size: int, thread: Any) -> None:
        """Notes that asynchronous copies of so many bytes may arrive from now on."""
        places, moment, _ = self._places(at, size, thread)
        self.pending[places] = moment.thread

    def end_copy(self, at: Any, size: int, thread: Any) -> None:
        """Notes that they have arrived."""
        self.pending[self._places(at, size, thread)[0]] = -1


def _first(kind: str, bad: Any, places: Any, other: Any, moment: Moment) -> list[Conflict]:
    """Returns the first conflict of a kind, if there is one."""
    hits = np.flatnonzero(bad)
    if not hits.size:
        return []
    k = hits[0]
    return [Conflict(kind, int(places[k]), int(other[k]), int(moment.thread[k]))]
