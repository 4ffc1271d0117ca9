# SPDX-License-Identifier: Apache-2.0
"""A3C: several processes act and learn at once, on weights that they share without a lock.

    θ_mine ← θ      g = ∇ A2C's loss at θ_mine over a few steps      θ ← RMSProp(θ, g)

Paper: arXiv 1602.01783, algorithm S3, with RMSProp's statistics shared as in its §8; without a lock
as in arXiv 1106.5730 (Hogwild). Loss and numbers are those of a2c. The processes pause together now
and then, so that an evaluation and a checkpoint see weights that nobody moves; two runs of one
seed differ, because nobody waits in between.

>>> import torch
>>> shared, mine = torch.tensor([1.0, 2.0]), torch.nn.Parameter(torch.zeros(2))
>>> mine.grad = torch.tensor([0.5, -0.5])
>>> optimizer = optimizer_of(shared, mine.grad, torch.zeros(2), learning_rate=0.1)
>>> optimizer.step()                                    # g / √(0.01·g²) = ±10
>>> [round(each, 3) for each in shared.tolist()]
[0.0, 3.0]
"""

from __future__ import annotations

import contextlib
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import numpy as np
import torch
import torch.multiprocessing as processes
from torch import Tensor
from torch.nn import Parameter

from rlkern.control.actor_critic import ActorCritic
from rlkern.control.algorithms.a2c import A2C, A2CSettings
from rlkern.control.declaration import BOX, DISCRETE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.runs.errors import UserError
from rlkern.runs.settings.types import Count, NotNegative

# Steps of each process between two pauses.
_TOGETHER = 500
# What a process may take for the steps that it is in when the run ends.
_LAST_SECONDS = 5.0


class A3CSettings(A2CSettings):
    """Settings of A3C."""

    num_envs: Count = 2
    """Processes, each with a copy of the environment of its own."""
    device: Literal["cpu"] = "cpu"
    """The processes share memory of the CPU."""
    rollout: Count = 20
    """Steps of a process between two updates (t_max)."""
    entropy_coef: NotNegative = 0.01
    """Weight of the policy's entropy (arXiv 1602.01783, §5.1)."""


def optimizer_of(
    shared: Tensor, gradient: Tensor, statistics: Tensor, *, learning_rate: float
) -> torch.optim.Optimizer:
    """Returns an RMSProp that moves shared weights by a process's own gradient, and keeps the mean
    of squared gradients in shared memory, too."""
    weights = Parameter(shared)
    weights.grad = gradient
    optimizer = torch.optim.RMSprop([weights], learning_rate, alpha=0.99, eps=1e-5)
    optimizer.state[weights] = {"step": torch.tensor(0.0), "square_avg": statistics}
    return optimizer


def work(settings: Any, seed: int, shared: Tensor, statistics: Tensor, pipe: Connection) -> None:
    """Acts and learns in a process of its own: so many steps whenever it is told a number."""
    # Signals reach the whole group; the parent ends this process after it has saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    environments = Environments(settings.env, settings.env_options, 1, seed)
    learner = A2C(settings, environments)
    mine = learner.weights.vector
    assert mine.grad is not None
    learner.weights.optimizer = optimizer_of(
        shared, mine.grad, statistics, learning_rate=settings.learning_rate
    )
    while (count := _asked(pipe)) is not None:
        before, goal = environments.steps, environments.steps + count
        found: dict[str, float] = {}
        while environments.steps < goal:
            mine.data.copy_(shared)
            found = learner.iterate()
        episodes, environments.finished = environments.finished, []
        with contextlib.suppress(ConnectionError):  # nobody is left who reads it
            pipe.send((environments.steps - before, episodes, found))
    environments.close()


def _asked(pipe: Connection) -> int | None:
    """Returns the steps that the parent asks for, None if it wants no more or was killed."""
    try:
        return pipe.recv()
    except (EOFError, ConnectionError):
        return None


class A3C(ActorCritic):
    """Starts the processes, and counts what they did."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.weights.share()
        self.statistics = torch.zeros_like(self.weights.vector.data).share_memory_()
        self.pipes: list[Connection] = []
        self.started: list[BaseProcess] = []

    def _start(self) -> None:
        # A forked process would inherit the threads of the display and of autograd half.
        context = processes.get_context("spawn")
        for number in range(self.settings.num_envs):
            mine, its = context.Pipe()
            # A resumed run sees other episodes than those that it began with.
            mixed = [self.settings.seed, 1 + number, self.environments.steps]
            seed = int(np.random.SeedSequence(mixed).generate_state(1)[0])
            shared = self.weights.vector.data
            process = context.Process(
                target=work, args=(self.settings, seed, shared, self.statistics, its), daemon=True
            )
            process.start()
            its.close()
            self.pipes.append(mine)
            self.started.append(process)

    def iterate(self) -> dict[str, float]:
        """Lets every process take some steps, and waits for all of them."""
        if not self.started:
            self._start()
        left = self.settings.steps - self.environments.steps
        for pipe in self.pipes:
            pipe.send(max(1, min(_TOGETHER, left // len(self.pipes))))
        found: dict[str, float] = {}
        for pipe in self.pipes:
            try:
                steps, episodes, found = pipe.recv()
            except (EOFError, ConnectionError):
                raise UserError("a process of the run has ended; its message is above") from None
            self.environments.steps += steps
            self.environments.finished.extend(episodes)
        return found

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self.pipes:
            with contextlib.suppress(ConnectionError):
                pipe.send(None)
        for process in self.started:
            process.join(_LAST_SECONDS)
            # It may be in the middle of many slow steps, and is deaf to the signals of the group.
            process.kill()
            process.join()

    def state(self) -> dict[str, Any]:
        """Returns the weights and RMSProp's statistics."""
        return {"weights": self.weights.state(), "statistics": self.statistics}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back, into the shared memory."""
        self.weights.load(state["weights"])
        self.statistics.copy_(state["statistics"])


ALGORITHM = ControlAlgorithm(
    name="a3c",
    paper="arXiv 1602.01783, algorithm S3",
    learns="actor–critic",
    on_policy=True,
    observations=BOX,
    actions=(DISCRETE, BOX),
    settings=A3CSettings,
    learner=A3C,
    repeats=False,
    recipes={"CartPole-v1": {"steps": 300_000}},
)
