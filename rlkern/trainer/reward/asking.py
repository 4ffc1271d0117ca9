# SPDX-License-Identifier: Apache-2.0
"""How a user's reward function is asked about each answer by itself, and as coroutines."""

from __future__ import annotations

import abc
import asyncio
import inspect
import itertools
import math
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from rlkern.runs.errors import RewardError

Call = dict[str, list]  # the arguments of one call, all of one length
# Of a function that compares answers with each other.
_COMPARES = "compares"
# Seconds beyond their limits that coroutines may take before their event loop counts as blocked.
_PATIENCE = 60.0


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


def is_async(function: Callable) -> bool:
    """Returns whether a function is a coroutine function, or an object that is called as one."""
    of_object = inspect.iscoroutinefunction(type(function).__call__)
    return of_object or inspect.iscoroutinefunction(function)


def reward_name(function: Callable[..., object]) -> str:
    """Returns the name a function's rewards are logged under."""
    return getattr(function, "__name__", type(function).__name__)


class Limited(abc.ABC):
    """A reward function asked by parts; `late` counts answers whose time was over, which have no
    reward."""

    def __init__(self, function: Callable, limits: Limits) -> None:
        # By it, names, files and parameters are those of the function.
        self.__wrapped__ = function
        self.__name__ = reward_name(function)
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

    @abc.abstractmethod
    def ask(self, calls: list[Call]) -> list[list | None]:
        """Returns what each call returned, None where its time was over."""

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
