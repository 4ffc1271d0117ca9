# SPDX-License-Identifier: Apache-2.0
"""Policies of on-policy algorithms: a network, and the distribution whose parameters it gives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import Parameter

import rlkern
from rlkern.control.environments import inside
from rlkern.control.networks import Mlp


@cache
def counted(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the mask and the weights (N,) of a mean over all rows."""
    mask = torch.ones(rows, dtype=torch.bool, device=device)
    return mask, torch.full((rows,), 1.0 / rows, device=device)


class Policy(ABC):
    """What a distribution over actions must offer.

    parameters  those of the network, and of the distribution beside it
    """

    network: Mlp
    parameters: list[Parameter]

    def outputs(self, observation: Tensor) -> Tensor:
        """Returns what the network gives for observations (N, D)."""
        return self.network(observation)

    @abstractmethod
    def sample(self, outputs: Tensor) -> Tensor:
        """Returns an action for each row."""

    @abstractmethod
    def greedy(self, outputs: Tensor) -> Tensor:
        """Returns the most probable action of each row."""

    @abstractmethod
    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """Returns actions as the environment takes them."""

    @abstractmethod
    def logprob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Returns log π(a|s), (N,)."""

    @abstractmethod
    def loss(
        self, outputs: Tensor, action: Tensor, advantage: Tensor, **given: Any
    ) -> rlkern.LossOutput:
        """Returns the mean loss of actions; `given` goes to the library's operation."""

    @abstractmethod
    def distribution(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensors that `kl` compares."""

    @abstractmethod
    def kl(self, old: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        """Returns KL(π_old‖π) of each row; plain PyTorch, which differentiates it twice."""


class Categorical(Policy):
    """One of finitely many actions; the network gives their logits."""

    def __init__(self, space: spaces.Discrete, sizes: Sequence[int]) -> None:
        self.network = Mlp([*sizes, int(space.n)], torch.tanh).orthogonal(0.01)
        self.parameters = self.network.parameters

    def sample(self, outputs: Tensor) -> Tensor:
        """Returns actions (N,).

        argmax_a p_a/E_a with E_a exponential is a sample of p: the smallest of exponential times
        with rates p_a is the a-th with probability p_a. Drawn on the host, whose generator a
        checkpoint holds.
        """
        p = outputs.softmax(-1)
        return (p / torch.empty(p.shape).exponential_().to(p.device)).argmax(-1)

    def greedy(self, outputs: Tensor) -> Tensor:
        """Returns actions (N,)."""
        return outputs.argmax(-1)

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """Returns the numbers as they are."""
        return action

    def logprob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Returns log softmax(outputs) at the actions."""
        return outputs.log_softmax(-1).gather(-1, action[:, None]).squeeze(-1)

    def loss(
        self, outputs: Tensor, action: Tensor, advantage: Tensor, **given: Any
    ) -> rlkern.LossOutput:
        """Returns rlkern.policy_loss: one pass over the logits."""
        mask, weight = counted(len(action), action.device)
        return rlkern.policy_loss(outputs, action, advantage, mask, weight=weight, **given)

    def distribution(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the log-probabilities of all actions."""
        return (outputs.log_softmax(-1),)

    def kl(self, old: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        """Returns Σ_a π_old(a)·(log π_old(a) − log π(a))."""
        (before,) = old
        return (before.exp() * (before - outputs.log_softmax(-1))).sum(-1)


class Gaussian(Policy):
    """A vector of numbers around what the network gives, each with a spread of its own that does
    not depend on the state; the environment gets it clipped to its bounds."""

    def __init__(self, space: spaces.Box, sizes: Sequence[int]) -> None:
        count = int(np.prod(space.shape))
        self.space = space
        self.network = Mlp([*sizes, count], torch.tanh).orthogonal(0.01)
        self.log_std = Parameter(torch.zeros(count))
        self.parameters = [*self.network.parameters, self.log_std]

    def sample(self, outputs: Tensor) -> Tensor:
        """Returns actions (N, A)."""
        return outputs + self.log_std.exp() * torch.randn(outputs.shape).to(outputs.device)

    def greedy(self, outputs: Tensor) -> Tensor:
        """Returns the means."""
        return outputs

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """Returns the actions inside the bounds."""
        return inside(self.space, action)

    def logprob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Returns the density's logarithm.

        >>> policy = Gaussian(spaces.Box(-1.0, 1.0, (2,)), [3])
        >>> round(policy.logprob(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item(), 4)
        -2.3379

        −½ − 2·½·log 2π.
        """
        z = (action - outputs) * torch.exp(-self.log_std)
        return -0.5 * z.square().sum(-1) - (self.log_std + 0.5 * math.log(2 * math.pi)).sum()

    def loss(
        self, outputs: Tensor, action: Tensor, advantage: Tensor, **given: Any
    ) -> rlkern.LossOutput:
        """Returns rlkern.token_objective of the log-densities."""
        mask, weight = counted(len(action), action.device)
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(len(action))
        return rlkern.token_objective(
            self.logprob(outputs, action), advantage, mask, entropy=entropy, weight=weight, **given
        )

    def distribution(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Returns means and logarithms of the spreads."""
        return outputs, self.log_std.detach().clone()

    def kl(self, old: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        """Returns Σ log σ/σ_old + (σ_old² + (μ_old − μ)²)/2σ² − ½."""
        mean, log_std = old
        variance = torch.exp(2.0 * self.log_std)
        spread = (torch.exp(2.0 * log_std) + (mean - outputs).square()) / (2.0 * variance)
        return (self.log_std - log_std + spread - 0.5).sum(-1)


def policy_for(space: spaces.Space, sizes: Sequence[int]) -> Policy:
    """Returns the policy of an action space; sizes are those of the input and the hidden layers."""
    if isinstance(space, spaces.Discrete):
        return Categorical(space, sizes)
    assert isinstance(space, spaces.Box)
    return Gaussian(space, sizes)
