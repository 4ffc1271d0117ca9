# SPDX-License-Identifier: Apache-2.0
"""What on-policy algorithms with a value function share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rlkern
from rlkern.control.environments import Environments
from rlkern.control.group import Settings
from rlkern.control.learner import Learner
from rlkern.control.networks import Encoder, Mlp, Weights
from rlkern.control.policies import counted, policy_for
from rlkern.control.rollout import Rollout, collect, steps_of_each
from rlkern.runs.device import resolve_device
from rlkern.runs.settings.types import Count, Counts, NotNegative, Positive, Share


class PolicySettings(Settings):
    """Settings of a policy that a network computes."""

    hidden: Counts = (64, 64)
    """Units of the hidden layers, tanh between them; policy and value function have a network
    each (arXiv 1707.06347, §6.1)."""
    learning_rate: Positive = 3e-4
    """Step size of the optimizer."""
    discount: Share = 0.99
    """Discount γ."""


class RolloutSettings(PolicySettings):
    """Settings of a policy whose advantages come from a value function."""

    rollout: Count = 2048
    """Steps of each copy between two updates."""
    gae_lambda: Share = 0.95
    """λ of the advantages: 1 is the return minus the value, 0 the error of one step."""


class ActorCriticSettings(RolloutSettings):
    """Settings of a policy and a value function that one optimizer moves."""

    entropy_coef: NotNegative = 0.0
    """Weight of the policy's entropy."""
    value_coef: NotNegative = 0.5
    """Weight of the value function's mean squared error."""
    max_grad_norm: Positive = 0.5
    """Longest gradient; a longer one is scaled down."""


class PolicyLearner(Learner):
    """Acts by a policy that a network computes."""

    weights: Weights

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.device = resolve_device(settings.device)
        self.encoder = Encoder(environments, self.device)
        self.sizes = [self.encoder.size, *settings.hidden]
        self.policy = policy_for(environments.actions, self.sizes)

    @classmethod
    def check(cls, settings: Any, environments: Environments) -> None:
        """Raises UserError for a device that is not there."""
        resolve_device(settings.device)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the most probable actions."""
        with torch.inference_mode():
            action = self.policy.greedy(self.policy.outputs(self.encoder(observation)))
        return self.policy.for_environment(action.cpu().numpy())

    def state(self) -> dict[str, Any]:
        """Returns parameters and the state of the optimizer."""
        return self.weights.state()

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        self.weights.load(state)


class ActorCritic(PolicyLearner):
    """A policy and a value function with a network each, and their parameters in one vector."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.critic = Mlp([*self.sizes, 1], torch.tanh).orthogonal(1.0)
        self.weights = Weights([*self.policy.parameters, *self.critic.parameters], self.device)

    def value(self, observation: Tensor) -> Tensor:
        """Returns V(s), (N,)."""
        return self.critic(observation).squeeze(-1)

    def collect(self) -> Rollout:
        """Returns the next steps of all copies."""
        over = steps_of_each(self.settings.rollout)
        return collect(self.environments, self.policy, self.encoder, over)

    def value_loss(self, value: Tensor, target: Tensor) -> rlkern.LossOutput:
        """Returns the mean squared error."""
        mask, weight = counted(len(value), value.device)
        return rlkern.value_loss(value, None, target, mask, kind="full_squared", weight=weight)


def actor_critic_metrics(policy: rlkern.LossOutput, value: rlkern.LossOutput) -> dict[str, float]:
    """Returns the measurements of an update under their names."""
    about, values = rlkern.metrics_dict(policy.metrics), rlkern.value_metrics_dict(value.metrics)
    found = {
        "losses/policy_loss": policy.loss.item(),
        "losses/value_loss": value.loss.item(),
        "losses/entropy": about["entropy"],
    }
    explained = values["explained_variance"]
    return {**found, "losses/explained_variance": explained} if math.isfinite(explained) else found
