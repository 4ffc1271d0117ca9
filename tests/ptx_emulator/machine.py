# SPDX-License-Identifier: Apache-2.0
"""Runs a kernel: all threads of some blocks at a time, one program counter for each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import arithmetic, control, conversions, exchanges, transfers
from .control import EXIT, WAIT
from .memory import Access, Buffer, GlobalMemory, Region, Traffic, aligned
from .program import Instruction, Program, PtxFault
from .shadow import WARP, Clock, Conflict, Race, Shadow
from .transfers import Copy
from .values import FLOAT, POISON, UNSIGNED, bits_of, size_of

# Threads that run at a time: longer vectors cost less an element, and more in caches.
LANES = 16384
BUILDERS = {
    name: builder
    for module in (arithmetic, control, conversions, exchanges, transfers)
    for name, builder in module.BUILDERS.items()
}
# What may stand between the name and the type; the builders of the other instructions look.
MODIFIERS = {name: set(words.split()) for names, words in (
    ("add sub ex2 lg2 rcp sqrt rsqrt", "rn approx ftz"), ("mul", "lo wide rn ftz"),
    ("mad", "lo wide"), ("fma", "rn rm ftz"), ("div", "rn full ftz"), ("neg abs", "ftz"),
    ("min max", "NaN ftz"), ("shf", "r wrap"), ("redux", "sync add min max"),
    ("and or xor not shl shr bfe bfi popc prmt copysign mov selp", ""),
) for name in names.split()}  # fmt: skip


class Machine:
    """Executes launches, and keeps what it found: races, and the traffic of each kernel.

    Where all shared memory is readable, what nobody wrote to it is NaN, and no fault.
    """

    def __init__(self, all_readable: bool = False) -> None:
        self.all_readable = all_readable
        self.races: dict[tuple[str, str, str, str], Race] = {}
        self.traffic: dict[str, Traffic] = {}

    def launch(
        self, program: Program, arguments: Sequence[Any], buffers: list[Buffer],
        blocks: int, shared: int = 0,
    ) -> None:  # fmt: skip
        """Runs all blocks of a grid; buffers change in place. Raises PtxFault."""
        self.program, self.blocks, self.shared_size = program, blocks, max(shared, 16)
        self.clock = Clock(program.threads, blocks)
        self.memory = GlobalMemory(
            [Region(b, Shadow(len(b.data), b.granule, self.clock)) for b in buffers]
        )
        self.parameters = np.zeros(program.parameter_bytes, np.uint8)
        for p, value in zip(program.parameters, arguments):
            data = value if isinstance(value, bytes) else self._parameter(p.kind, value).tobytes()
            assert len(data) == p.bytes, p
            self.parameters[p.offset : p.offset + p.bytes] = np.frombuffer(data, np.uint8)
        at_once = max(1, LANES // program.threads)
        with np.errstate(all="ignore"):
            for first in range(0, blocks, at_once):
                try:
                    self._run_blocks(first, min(at_once, blocks - first))
                except PtxFault as fault:
                    raise PtxFault(f"{program.name} {self.now.where}: {fault}") from None

    @staticmethod
    def _parameter(kind: str, value: Any) -> Any:
        if kind in FLOAT:
            return bits_of(FLOAT[kind](value))[()]
        size = size_of(kind)
        return UNSIGNED[size](int(value) % (1 << 8 * size))

    def _run_blocks(self, first: int, blocks: int) -> None:
        threads = self.program.threads
        self.count = blocks * threads
        lane = np.arange(self.count)
        self.first_block = first
        self.thread = (lane + first * threads).astype(np.int32)
        self.everyone = np.ones(self.count, bool)
        self.registers: dict[str, Any] = {
            "%tid.x": (lane % threads).astype(np.uint32),
            "%ctaid.x": (first + lane // threads).astype(np.uint32),
            "%nctaid.x": np.uint32(self.blocks),
            "%ntid.x": np.uint32(threads),
            "%laneid": (lane % WARP).astype(np.uint32),
        }
        size = blocks * self.shared_size
        written = None if self.all_readable else np.zeros(size, bool)
        buffer = Buffer("shared", 0, np.full(size, 0xFF, np.uint8), written)
        self.shared = Region(buffer, Shadow(size, 1, self.clock))
        self.shared_begin = lane // threads * self.shared_size
        self.copies: list[Copy] = []
        self.group = np.zeros(self.count, np.int64)  # of copies: how many each thread has closed
        self.counters = np.zeros(self.count, np.int64)
        self.alive, self.waiting = self.everyone.copy(), ~self.everyone
        while self.alive.any():
            runnable = self.alive & ~self.waiting
            if runnable.any():
                self._run(runnable)
            else:
                self._meet()

    def _meet(self) -> None:
        """Lets blocks pass the barrier at which all their threads wait."""
        threads = self.program.threads
        alive, waiting = (x.reshape(-1, threads) for x in (self.alive, self.waiting))
        for block in np.flatnonzero(alive.any(1)):
            if not waiting[block].all():
                raise PtxFault("a barrier that some threads never reach")
            self.clock.pass_barrier(self.first_block + block)
        self.waiting[:] = False

    def _run(self, runnable: Any) -> None:
        """Runs the threads that are least far, up to where they branch apart or meet others."""
        counters, end = self.counters, len(self.program.code)
        pc = int(counters[runnable].min())
        active = runnable & (counters == pc)
        others = counters[runnable & ~active]
        stop = int(others.min()) if others.size else end
        active = self.everyone if active.all() else active
        while pc < stop:
            self.now = self.program.code[pc]
            leaving = self._step(pc)(self, active)
            pc += 1
            if leaving is None:
                continue
            threads, target = leaving
            counters[active] = pc
            if target == WAIT:
                self.waiting[threads] = True
            elif target == EXIT:
                self.alive[threads] = False
            else:
                counters[threads] = target
            return
        counters[active] = pc
        if pc >= end:
            self.alive[active] = False

    def _step(self, pc: int) -> Callable[["Machine", Any], Any]:
        steps = self.program.steps
        if steps[pc] is None:
            steps[pc] = build(self.program, self.now)
        return steps[pc]

    def put(self, name: str, value: Any, active: Any) -> None:
        """Writes a register of the active threads."""
        if name == "_":
            return
        if active is not self.everyone:
            size = self.program.size(name)
            value = np.where(active, value, self.registers.get(name, POISON.get(size, np.False_)))
        self.registers[name] = value

    def full(self, value: Any) -> Any:
        """Returns a vector with an element for each thread."""
        value = np.asarray(value)
        return np.broadcast_to(value, (self.count,)) if value.ndim == 0 else value

    def _access(self, address: Any, size: int, count: int, lane: Any) -> Access:
        access = Access(address, size, count, self.thread[lane])
        aligned(access)
        return access

    def _shared(self, address: Any, size: int, count: int, lane: Any) -> Access:
        access = self._access(address, size, count, lane)
        at = access.address.astype(np.int64)
        if ((at < 0) | (at + access.width > self.shared_size)).any():
            raise PtxFault(f"out of bounds: {access.width} bytes at shared+{int(at.max())}")
        return access._replace(address=at + self.shared_begin[lane])

    def load(self, space: str, address: Any, size: int, count: int, active: Any) -> Any:
        """Returns numbers (threads, count), read by the active threads only."""
        lane = np.flatnonzero(active)
        out = np.zeros((self.count, count), UNSIGNED[size])
        at = self.full(address)[lane]
        if lane.size and space == "shared":
            access = self._shared(at, size, count, lane)
            out[lane], conflicts = self.shared.load(access)
            self._note(self.shared, conflicts)
        elif lane.size:
            access = self._access(at, size, count, lane)
            self._tally(access)
            for chosen, region, part in self.memory.locate(access):
                out[lane[chosen]], conflicts = region.load(part)
                self._note(region, conflicts)
        return out

    def store(self, space: str, address: Any, size: int, values: list[Any], active: Any) -> None:
        """Writes numbers of the active threads."""
        lane = np.flatnonzero(active)
        if not lane.size:
            return
        at = self.full(address)[lane]
        data = np.stack([self.full(v)[lane].astype(UNSIGNED[size]) for v in values], 1)
        if space == "shared":
            access = self._shared(at, size, len(values), lane)
            self._note(self.shared, self.shared.store(access, data))
            return
        access = self._access(at, size, len(values), lane)
        self._tally(access)
        for chosen, region, part in self.memory.locate(access):
            self._note(region, region.store(part, data[chosen]))

    def begin_copy(self, copy: Copy) -> None:
        """Starts a copy: it may read, and write, at any time until its threads wait for it."""
        access = self._shared(copy.target, copy.size, 1, copy.lane)
        shadow, where = self.shared.shadow, (access.address, copy.size, access.thread)
        self._note(self.shared, shadow.write(*where, np.ones(len(copy.lane), bool)))
        shadow.begin_copy(*where)
        self._fetch(copy, early=True)
        self.copies.append(copy)

    def _fetch(self, copy: Copy, early: bool) -> Any:
        data = np.zeros((len(copy.lane), copy.size), np.uint8)
        some = np.flatnonzero(copy.length > 0)
        if some.size:
            thread = self.thread[copy.lane[some]]
            whole = Access(copy.source[some], copy.size, 1, thread)
            aligned(whole)
            if early:
                self._tally(whole)
            for chosen, region, part in self.memory.locate(whole._replace(size=1, count=copy.size)):
                data[some[chosen]], conflicts = region.load(part)
                self._note(region, conflicts)
        data[np.arange(copy.size) >= copy.length[:, None]] = 0
        return data

    def wait_copies(self, left: int, active: Any) -> None:
        """Ends the copies of the active threads but for those of their last groups."""
        kept = []
        for copy in self.copies:
            ready = active[copy.lane] & (copy.group < self.group[copy.lane] - left)
            if ready.any():
                self._end_copy(copy.of(ready))
            if not ready.all():
                kept.append(copy.of(~ready))
        self.copies = kept

    def _end_copy(self, copy: Copy) -> None:
        data = self._fetch(copy, early=False)
        access = self._shared(copy.target, 1, copy.size, copy.lane)
        self.shared.shadow.end_copy(access.address, copy.size, access.thread)
        self._note(self.shared, self.shared.store(access, data))

    def _tally(self, access: Access) -> None:
        self.traffic.setdefault(self.program.name, Traffic()).add(access)

    def _note(self, region: Region, conflicts: list[Conflict]) -> None:
        name = region.buffer.name
        for c in conflicts:
            key = (self.program.name, name, c.kind, self.now.where)
            offset = c.place * region.shadow.granule
            self.races.setdefault(key, Race(*key, (c.other, c.thread), offset))


def build(program: Program, i: Instruction) -> Callable[[Machine, Any], Any]:
    """Returns the function that executes an instruction, for those active whose guard holds."""
    builder = BUILDERS.get(i.parts[0])
    if builder is None:
        raise PtxFault(f"unknown instruction {'.'.join(i.parts)}")
    if not set(i.parts[1:-1]) <= MODIFIERS.get(i.parts[0], set(i.parts)):
        raise PtxFault(f"{'.'.join(i.parts)} is not known here")
    step = builder(program, i)
    if i.guard is None:
        return step
    guard, negated = program.source(i.guard, 0), i.negated

    def guarded(m: Machine, active: Any) -> Any:
        holds = m.full(guard(m))
        chosen = active & (~holds if negated else holds)
        return step(m, m.everyone if chosen.all() else chosen)

    return guarded
