# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: who they are, how they share rows, and how they agree.

Every process computes advantages, weights and statistics of the whole batch, from the same numbers
in the same order, and draws the random numbers of the whole batch. Three things alone are split:
sampling, scoring, and forward and backward; rewards are asked by the main process, which tells the
others. So a run of several processes is the run of one.
"""

from __future__ import annotations

import atexit
import datetime
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from rlkern.runs.device import resolve_device
from rlkern.runs.errors import UserError

T = TypeVar("T")
# What torchrun tells each process of a run.
# The others wait while the main process asks a reward, which may take as long as it likes; those of
# a process that died are ended by torchrun.
_PATIENCE = datetime.timedelta(days=7)
_RANK, _SIZE, _LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"


@dataclass(frozen=True)
class World:
    """Process number `rank` of `size`, and the device it works on; World() is a run of one process,
    in which every method returns what it was given.

    Methods that talk (gather, gather_rows, sum, any, from_main, in_main, barrier) must be called
    by every process, in the same order.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def start(cls, device: str) -> World:
        """Returns this process's place among those that torchrun started, with `device` resolved on
        this machine. The group of processes lasts until they end."""
        chosen, size = resolve_device(device), int(os.environ.get(_SIZE, "1"))
        if size == 1:
            return cls(device=chosen)
        rank, local = int(os.environ[_RANK]), int(os.environ.get(_LOCAL_RANK, "0"))
        if chosen.type == "cuda":
            if local >= torch.cuda.device_count():
                raise UserError(
                    f"each process must have a GPU of its own, got {torch.cuda.device_count()}"
                    f" GPUs for process {local} of this machine; start fewer, or use --device cpu"
                )
            chosen = torch.device("cuda", local)
            torch.cuda.set_device(chosen)
        import torch.distributed as dist

        if not dist.is_initialized():
            kind = "nccl" if chosen.type == "cuda" else "gloo"
            dist.init_process_group(kind, timeout=_PATIENCE)
            atexit.register(dist.destroy_process_group)
        return cls(rank, size, chosen)

    @property
    def is_main(self) -> bool:
        """Returns True in the one process that writes files and talks to the person."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """Returns the first of `count` things in a row that is this process's, and the end of them.

        >>> World(rank=1, size=2).share(5)
        (2, 5)
        """
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def gather(self, value: T) -> list[T]:
        """Returns the value of each process in their order, its tensors on this one's device."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        buffer = io.BytesIO()
        torch.save(value, buffer)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, buffer.getvalue())
        # Objects, not only weights: what is loaded comes from the run's own processes.
        return [
            torch.load(io.BytesIO(x), map_location=self.device, weights_only=False) for x in found
        ]

    def gather_rows(self, rows: Tensor, *, fill: float = 0) -> Tensor:
        """Returns the rows of all processes in one tensor; ends of shorter ones hold `fill`."""
        if self.size == 1:
            return rows
        # A process without rows knows no sizes.
        parts = [part for part in self.gather(rows) if len(part)]
        sizes = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts))]
        whole = rows.new_full((sum(len(part) for part in parts), *sizes), fill)
        first = 0
        for part in parts:
            own = whole[first : first + len(part)]
            own[tuple(slice(size) for size in part.shape)] = part
            first += len(part)
        return whole

    def sum(self, value: Tensor) -> Tensor:
        """Returns the sum over processes, added in their order: the same bits in each."""
        return value if self.size == 1 else torch.stack(self.gather(value)).sum(0)

    def any(self, flag: bool) -> bool:
        """Returns whether any process says so, so that all of them stop after the same step."""
        return any(self.gather(flag))

    def from_main(self, value: T) -> T:
        """Returns what the main process gave: for what clocks or folders decide."""
        return self.gather(value)[0]

    def in_main(self, function: Callable[[], T]) -> T:
        """Returns what the function returned in the main process, the only one that calls it: for
        code of the user's, which may say something else when it is asked again. What it raises for
        the person is raised in every process."""
        if self.size == 1:
            return function()
        found: tuple[T | None, UserError | None] = (None, None)
        if self.is_main:
            try:
                found = (function(), None)
            except UserError as error:
                found = (None, error)
        value, problem = self.from_main(found)
        if problem is not None:
            raise problem
        return cast(T, value)

    def barrier(self) -> None:
        """Returns once every process has come here."""
        self.gather(None)
