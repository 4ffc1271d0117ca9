# SPDX-License-Identifier: Apache-2.0
"""What a policy did in its environments, in the form of the operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import rlkern
from rlkern.control.environments import Environments
from rlkern.control.networks import Encoder
from rlkern.control.policies import Policy, counted
from rlkern.runs.errors import UserError

# The first episodes on a grid, by chance, may take tens of thousands of steps.
PATIENCE = 100_000


class Rollout(NamedTuple):
    """Steps of all copies, the first copy's first, cut into the pieces of one episode each.

    observation  (N, D)
    action       (N,) or (N, A), as the policy drew it
    reward       (N,)
    cu_seqlens   (S + 1,) where each piece begins, and the last one ends
    after        (S, D) the observation that a piece's last action led to: where the episode was cut
                 off, or the rollout ended, there is value in it
    terminated   (S,) bool, whether there is none
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    cu_seqlens: Tensor
    after: Tensor
    terminated: Tensor

    @property
    def mask(self) -> Tensor:
        """All steps count."""
        return counted(len(self.reward), self.reward.device)[0]

    def estimates(self, value: Tensor, *, discount: float, gae_lambda: float):
        """Returns rlkern.gae's advantages and targets from values (N + S,) of `observation` and
        `after`."""
        count = len(self.reward)
        value, after = value.detach().split([count, len(value) - count])
        bootstrap = after.masked_fill(self.terminated, 0.0)
        return rlkern.gae(
            self.reward, value, self.mask, discount=discount, gae_lambda=gae_lambda,
            bootstrap=bootstrap, cu_seqlens=self.cu_seqlens,
        )  # fmt: skip

    def returns(self, discount: float) -> Tensor:
        """Returns the discounted sums of rewards to the end of each piece, and nothing after it."""
        return rlkern.discounted_return(
            self.reward, self.mask, discount=discount, cu_seqlens=self.cu_seqlens
        )


def collect(
    environments: Environments, policy: Policy, encoder: Encoder, over: Callable[[int], bool]
) -> Rollout:
    """Returns the steps that a policy takes until `over(steps of each copy)`."""
    observation: list[np.ndarray] = []
    action: list[np.ndarray] = []
    reward: list[np.ndarray] = []
    terminated: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    following: list[np.ndarray] = []
    while not over(len(reward)):
        seen = environments.observation
        with torch.inference_mode():
            drawn = policy.sample(policy.outputs(encoder(seen))).cpu().numpy()
        found = environments.step(policy.for_environment(drawn))
        observation.append(seen)
        action.append(drawn)
        reward.append(found.reward)
        terminated.append(found.terminated)
        ends.append(found.terminated | found.truncated)
        following.append(found.next)
    ends[-1] = np.ones_like(ends[-1])
    device = encoder.device

    def rows(steps: list[np.ndarray]) -> np.ndarray:
        """Returns (T, E, …) as (E·T, …)."""
        whole = np.array(steps).swapaxes(0, 1)
        return whole.reshape(-1, *whole.shape[2:])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    last = np.flatnonzero(rows(ends))
    return Rollout(
        encoder(rows(observation)),
        tensor(rows(action)),
        tensor(rows(reward)),
        tensor(np.concatenate([[0], last + 1])),
        encoder(rows(following)[last]),
        tensor(rows(terminated)[last]),
    )


def steps_of_each(count: int) -> Callable[[int], bool]:
    """Returns the end of a rollout of so many steps of each copy."""
    return lambda taken: taken >= count


def whole_episodes(
    environments: Environments, count: int, *, longest: int
) -> Callable[[int], bool]:
    """Returns the end of a rollout of so many episodes of a single copy.

    That end raises UserError if an episode which nothing cuts off is longer than `longest` and than
    PATIENCE: it may have no end, and what waits for it learns nothing.
    """
    before, longest = len(environments.finished), max(longest, PATIENCE)

    def over(taken: int) -> bool:
        if environments.endless and environments.longest() > longest:
            raise UserError(
                f"an episode of {environments.name} has not ended after {longest} steps, and"
                " only whole episodes teach here; give it a limit, env_options.max_episode_steps"
            )
        return len(environments.finished) - before >= count

    return over
