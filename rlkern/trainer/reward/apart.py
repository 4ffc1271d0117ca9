# SPDX-License-Identifier: Apache-2.0
"""A user's reward function in processes of its own, which are ended when their time is over."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from rlkern.runs.code import described
from rlkern.runs.errors import RewardError
from rlkern.trainer.reward.asking import Call, Limited, Limits


@dataclass
class Worker:
    """A process that answers calls, and our end of the pipe to it."""

    process: Any
    pipe: Connection

    def end(self) -> None:
        """Ends the process and all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has not made itself a group yet, or is gone
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Apart(Limited):
    """A function asked in processes of its own, made by fork at the first call. They are kept: one
    is ended, with all that it started, when its time is over or a call fails."""

    def __init__(self, function: Callable, limits: Limits) -> None:
        super().__init__(function, limits)
        self._workers: list[Worker] = []
        self._owner = 0

    def ask(self, calls: list[Call]) -> list[list | None]:
        """Returns what each call returned, None where its time was over; Raises RewardError if one
        raises or ends its process."""
        found: list[list | None] = [None] * len(calls)
        idle, busy = list(self._workers), dict[Connection, tuple[int, Worker, float]]()
        coming = iter(range(len(calls)))
        try:
            while True:
                while len(busy) < self.limits.workers and (place := next(coming, None)) is not None:
                    worker = idle.pop() if idle else self._start()
                    worker.pipe.send(calls[place])
                    limit = time.monotonic() + (self.limits.timeout or math.inf)
                    busy[worker.pipe] = (place, worker, limit)
                if not busy:
                    return found
                for place, worker, answer in self._next(busy):
                    found[place] = answer
                    if worker in self._workers:
                        idle.append(worker)
        except BaseException:
            self.end()
            raise

    def _next(
        self, busy: dict[Connection, tuple[int, Worker, float]]
    ) -> Iterator[tuple[int, Worker, list | None]]:
        """Yields the calls that are over, after waiting for one, and takes them out of `busy`."""
        first = min(limit for _, _, limit in busy.values())
        patience = None if first == math.inf else max(0.0, first - time.monotonic())
        ready, now = wait(list(busy), patience), time.monotonic()
        for pipe, (place, worker, limit) in list(busy.items()):
            if pipe in ready:
                del busy[pipe]
                yield place, worker, self._answer(worker)
            elif now >= limit:
                del busy[pipe]
                self._workers.remove(worker)
                worker.end()
                yield place, worker, None

    def _answer(self, worker: Worker) -> list:
        try:
            problem, values = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            raise RewardError(
                f"reward function {self.__name__} ended its process (exit code"
                f" {worker.process.exitcode})"
            ) from None
        if problem:
            raise RewardError(f"reward function {self.__name__} {problem}")
        return values

    def _start(self) -> Worker:
        if not self._workers:
            self._owner = os.getpid()
            atexit.register(self.end)
        ours, theirs = multiprocessing.Pipe()
        others = [ours, *(worker.pipe for worker in self._workers)]
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=_work, args=(self.__wrapped__, theirs, others))
        process.start()
        theirs.close()
        self._workers.append(Worker(process, ours))
        return self._workers[-1]

    def end(self) -> None:
        """Ends the processes; the next call starts others."""
        atexit.unregister(self.end)
        if os.getpid() == self._owner:
            for worker in self._workers:
                worker.end()
        self._workers = []


def _work(function: Callable, pipe: Connection, others: list[Connection]) -> None:
    """Answers calls until the run closes the pipe, or ends and closes it so."""
    os.setpgid(0, 0)  # Ctrl-C is for the run, which ends this group
    for other in others:
        other.close()
    torch.set_num_threads(1)  # the threads of a pool are not copied by fork
    while True:
        try:
            call = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple = ("", [_plain(value) for value in function(**call)])
        except Exception as error:
            answer = (described(error, function), None)
        pipe.send(answer)


def _plain(value: Any) -> Any:
    """Returns a number for a tensor or array of one, which a pipe would share, not copy."""
    return value.item() if hasattr(value, "item") else value
