# SPDX-License-Identifier: Apache-2.0
"""How a user's reward function is asked: about each answer by itself, in processes of its own that
are ended when their time is over, or as coroutines.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import itertools
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from rlkern.trainer.errors import RewardError

Call = dict[str, list]  # the arguments of one call, all of one length
# Of a function that compares answers with each other.
_COMPARES = "compares"
# Seconds beyond their limits that coroutines may take before their event loop counts as blocked.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Limits:
    """Seconds for a call, 0 for no limit, and the calls that run at once."""

    timeout: float = 0.0
    workers: int = 1

    @property
    def apart(self) -> bool:
        """Whether answers are asked about one by one."""
        return self.timeout > 0 or self.workers > 1


def compares(function: Callable) -> Callable:
    """Returns the function, marked as one that compares answers: it is asked about all answers to a
    prompt in one call, whatever the limits."""
    vars(function)[_COMPARES] = True
    return function


def limited(function: Callable, limits: Limits) -> Callable:
    """Returns a reward function that asks a user's one under these limits: one for coroutines, one
    for processes, or the function itself if there are no limits."""
    if _is_async(function):
        return Awaited(function, limits)
    return Apart(function, limits) if limits.apart else function


def _is_async(function: Callable) -> bool:
    own = vars(type(function)).get("__call__")  # of an object that is called
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(own)


class Limited:
    """A reward function asked by parts; `late` counts answers whose time was over, which have no
    reward."""

    def __init__(self, function: Callable, limits: Limits) -> None:
        # By it, names, files and parameters are those of the function.
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.limits, self.late = limits, 0

    def __call__(self, **columns: list) -> list[Any]:
        """Returns a reward for each answer, None where the time was over."""
        calls = list(self._calls(columns))
        rewards: list[Any] = []
        for call, found in zip(calls, self.ask(calls), strict=True):
            asked = len(call["completions"])
            if found is None:
                self.late += asked
                found = [None] * asked
            elif len(calls) > 1 and len(found) != asked:
                raise ValueError(f"it was asked about {asked} answers and returned {len(found)}")
            rewards += found
        return rewards

    def ask(self, calls: list[Call]) -> list[list | None]:
        """Returns what each call returned, None where its time was over."""
        raise NotImplementedError

    def _calls(self, columns: Call) -> Iterator[Call]:
        if not self.limits.apart:
            yield columns
            return
        by_group = getattr(self.__wrapped__, _COMPARES, False)
        places = range(len(columns["prompts"]))
        key = columns["prompts"].__getitem__ if by_group else None
        for _, same in itertools.groupby(places, key):
            some = list(same)
            yield {name: [x[i] for i in some] for name, x in columns.items()}


class Awaited(Limited):
    """A coroutine function; its calls share one event loop, which lasts as long as the process, so
    that a client may keep its connections."""

    def ask(self, calls: list[Call]) -> list[list | None]:
        """Returns what each call returned, None where its time was over; Raises RewardError if a
        coroutine does not give its event loop back."""
        asked = asyncio.run_coroutine_threadsafe(self._all(calls), _event_loop())
        rounds = math.ceil(len(calls) / self.limits.workers)
        longest = self.limits.timeout * rounds + _PATIENCE if self.limits.timeout else None
        done = threading.Event()
        asked.add_done_callback(lambda _: done.set())
        if not done.wait(longest):
            raise RewardError(
                f"reward function {self.__name__} blocks its event loop longer than reward.timeout:"
                " a coroutine has to await what takes time, or be a plain function"
            )
        return asked.result()

    async def _all(self, calls: list[Call]) -> list[list | None]:
        gate = asyncio.Semaphore(self.limits.workers)
        tasks = [asyncio.ensure_future(self._one(call, gate)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, call: Call, gate: asyncio.Semaphore) -> list | None:
        async with gate:
            asked: Coroutine = self.__wrapped__(**call)
            task = asyncio.ensure_future(asked)
            try:
                await asyncio.wait({task}, timeout=self.limits.timeout or None)
                return list(task.result()) if task.done() else None
            finally:
                task.cancel()


_loops: dict[int, asyncio.AbstractEventLoop] = {}


def _event_loop() -> asyncio.AbstractEventLoop:
    # By process: a child made by fork has no thread that would run it.
    if os.getpid() not in _loops:
        _loops[os.getpid()] = asyncio.new_event_loop()
        threading.Thread(target=_loops[os.getpid()].run_forever, daemon=True).start()
    return _loops[os.getpid()]


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


def described(error: BaseException, function: Callable) -> str:
    """Returns what a function raised and where: the last line of its own file on the way to the
    error, or else of any."""
    inner = inspect.unwrap(function)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [place for place in frames if code is not None and place[0] == code.co_filename]
    what = f"raised {type(error).__name__}: {error}"
    # Where it could not even be called, the last frame is the trainer's.
    return f"{what} ({_short(own[-1][0])}, line {own[-1][1]})" if own else what


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
