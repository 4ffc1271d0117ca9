# SPDX-License-Identifier: Apache-2.0
"""How well a learner acts without exploration."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from rlkern.control.environments import Environments, Episode
from rlkern.control.learner import Learner

# Added to the run's seed, so that evaluation sees episodes of its own.
EVALUATION_SEED = 2**32


def evaluate(learner: Learner, episodes: int) -> dict[str, float]:
    """Returns eval/return, its spread and eval/length over new episodes, the same ones each
    time."""
    with _same_random_numbers(learner):
        settings = learner.settings
        seed = settings.seed + EVALUATION_SEED
        found = play(learner.act, settings.env, eval_options(learner), episodes, seed)
    totals = np.array([each.total for each in found])
    return {
        "eval/return": float(totals.mean()),
        "eval/return_std": float(totals.std()),
        "eval/length": float(np.mean([each.length for each in found])),
        **learner.measured(),
    }


@contextlib.contextmanager
def _same_random_numbers(learner: Learner) -> Iterator[None]:
    """Keeps an evaluation from changing what the run draws after it."""
    kept, torch_kept = learner.rng.bit_generator.state, torch.get_rng_state()
    yield
    learner.rng.bit_generator.state = kept
    torch.set_rng_state(torch_kept)


def play(
    act: Callable[[np.ndarray], np.ndarray],
    env: str,
    options: Mapping[str, Any],
    episodes: int,
    seed: int,
) -> list[Episode]:
    """Returns `episodes` episodes whose actions `act` gives for observations (1, …).

    A seed and a number of an episode make its first state, whoever acts. One copy plays them in
    turn: of several copies at once the shortest episodes would be counted first.
    """
    environments = Environments(env, options, 1, seed)
    try:
        while len(environments.finished) < episodes:
            environments.step(act(environments.observation))
        return environments.finished
    finally:
        environments.close()


def eval_options(learner: Learner) -> dict[str, Any]:
    """Returns the arguments of gymnasium.make for an evaluation: an environment whose episodes have
    no time limit gets one."""
    settings = learner.settings
    endless = learner.environments.endless
    limit = {"max_episode_steps": settings.eval_length} if endless else {}
    return {**limit, **settings.env_options}
