# SPDX-License-Identifier: Apache-2.0
"""Networks of the classic algorithms: small ones, so that a call costs more than its numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import Linear, Parameter, functional, init

from rlkern.control.environments import Environments

Activation = Callable[[Tensor], Tensor]


class Mlp:
    """Linear layers with an activation between them, drawn as torch.nn.Linear draws them.

    A list of pairs, not a torch.nn.Module: with 64 units its calls take longer than its products.

    >>> Mlp([4, 64, 2], torch.tanh)(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, sizes: Sequence[int], activation: Activation) -> None:
        made = [Linear(i, o) for i, o in zip(sizes, sizes[1:])]
        self.layers: list[tuple[Parameter, Parameter]] = [
            (cast(Parameter, each.weight), each.bias) for each in made
        ]
        self.activation = activation

    @property
    def parameters(self) -> list[Parameter]:
        """Returns weights and biases, layer by layer."""
        return [each for layer in self.layers for each in layer]

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the outputs (N, O) of inputs (N, I)."""
        for weight, bias in self.layers[:-1]:
            x = self.activation(functional.linear(x, weight, bias))
        return functional.linear(x, *self.layers[-1])

    def orthogonal(self, last: float) -> Mlp:
        """Returns itself with orthogonal weights of gain √2, `last` in the last layer.

        Paper: arXiv 2005.12729, §3 (the authors' code of PPO).

        >>> weight = Mlp([4, 2, 2], torch.tanh).orthogonal(0.01).layers[0][0]
        >>> torch.allclose(weight @ weight.T, 2.0 * torch.eye(2), atol=1e-5)
        True
        """
        gains = [math.sqrt(2.0)] * (len(self.layers) - 1) + [last]
        for (weight, bias), gain in zip(self.layers, gains):
            init.orthogonal_(weight, gain)
            init.zeros_(bias)
        return self


class Weights:
    """Parameters laid out in one vector, and the optimizer that moves it.

    Parameters and their gradients become views of `vector` and `vector.grad`, so that the
    optimizer, the clip of the gradient and a target network take one call each, whatever the number
    of layers.

    >>> net = Mlp([1, 1], torch.tanh)
    >>> weights = Weights(net.parameters, torch.device("cpu"))
    >>> _ = weights.vector.data.copy_(torch.tensor([2.0, 3.0]))
    >>> net(torch.ones(1, 1)).item()
    5.0
    """

    def __init__(self, parameters: Sequence[Parameter], device: torch.device) -> None:
        self.parameters = list(parameters)
        flat = torch.cat([each.detach().reshape(-1) for each in self.parameters]).to(device)
        self.vector = Parameter(flat)
        self.vector.grad = torch.zeros_like(flat)
        self.optimizer: torch.optim.Optimizer | None = None
        self._bind()

    def _bind(self) -> None:
        data, grad = self.vector.data, self.vector.grad
        assert grad is not None
        start = 0
        for each in self.parameters:
            stop, shape = start + each.numel(), each.shape
            each.data = data[start:stop].view(shape)
            each.grad = grad[start:stop].view(shape)
            start = stop

    def share(self) -> None:
        """Moves the vector into memory that other processes see."""
        self.vector.data = self.vector.data.share_memory_()
        self._bind()

    def adam(self, learning_rate: float, eps: float = 1e-8) -> Weights:
        """Returns itself with Adam, in its one-call form."""
        self.optimizer = torch.optim.Adam([self.vector], learning_rate, eps=eps, fused=True)
        return self

    def set_learning_rate(self, value: float) -> None:
        """Sets the rate of the next steps."""
        assert self.optimizer is not None
        self.optimizer.param_groups[0]["lr"] = value

    def gradient(self, loss: Tensor) -> Tensor:
        """Returns the gradient of a loss in these parameters alone, as one vector."""
        assert self.vector.grad is not None
        self.vector.grad.zero_()
        loss.backward(inputs=self.parameters)
        return self.vector.grad

    def step(self, loss: Tensor, max_norm: float = math.inf) -> Tensor:
        """Returns the gradient's norm before it was clipped to max_norm, after the step."""
        gradient = self.gradient(loss)
        norm = clip(gradient, max_norm)
        assert self.optimizer is not None
        with torch.no_grad():
            # Without the hooks of profilers around it: they cost as much as the step of a vector.
            inspect.unwrap(type(self.optimizer).step)(self.optimizer)
        return norm

    def follow(self, others: Weights, tau: float) -> None:
        """Moves these a little towards others: θ⁻ ← (1 − τ)·θ⁻ + τ·θ."""
        self.vector.data.lerp_(others.vector.data, tau)

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of it."""
        optimizer = {} if self.optimizer is None else self.optimizer.state_dict()
        return {"vector": self.vector, "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        """Puts such a state back."""
        self.vector.data.copy_(state["vector"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])


def clip(gradient: Tensor, max_norm: float) -> Tensor:
    """Returns the norm of a gradient, which is then at most max_norm long.

    >>> gradient = torch.tensor([3.0, 4.0])
    >>> clip(gradient, 1.0).item(), [round(each, 4) for each in gradient.tolist()]
    (5.0, [0.6, 0.8])
    """
    norm = torch.linalg.vector_norm(gradient)
    if math.isfinite(max_norm):
        gradient.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))
    return norm


class Encoder:
    """Makes the vectors that networks read out of observations.

    size    their length: that of a box, or the number of states, each a vector with a single 1
    """

    def __init__(self, environments: Environments, device: torch.device) -> None:
        self.states, self.device = environments.states, device
        box = environments.observations
        self.size = self.states or (box.shape[0] if isinstance(box, spaces.Box) else 0)

    def array(self, observation: np.ndarray) -> np.ndarray:
        """Returns (N, size) float32 on the host."""
        if self.states is None:
            return observation
        # Not a row of the identity, which has as many numbers as there are pairs of states.
        rows = np.zeros((len(observation), self.states), np.float32)
        rows[np.arange(len(observation)), observation] = 1.0
        return rows

    def __call__(self, observation: np.ndarray) -> Tensor:
        """Returns (N, size) float32 on the device."""
        return torch.from_numpy(self.array(observation)).to(self.device)
