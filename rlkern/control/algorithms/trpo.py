# SPDX-License-Identifier: Apache-2.0
"""TRPO: the largest step along the natural gradient that stays within a KL of the old policy.

    maximise mean(r·A)  subject to  mean KL(π_old‖π) ≤ δ        r = π(a|s) / π_old(a|s)
    x = F⁻¹·g by conjugate gradients,  step √(2δ / x·F·x)·x, shortened until both hold:
    the KL is at most δ, and mean(r·A) is larger than before

Paper: arXiv 1502.05477, eq. 14 and appendix C. g is the gradient of the library's reinforce loss,
which at ratio 1 is that of r·A. F·v is a second derivative of the KL: plain PyTorch, because the
fused operations have no second backward. The value function is fitted by Adam.

>>> matrix = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
>>> x = conjugate_gradient(lambda v: matrix @ v, torch.tensor([2.0, 2.0]), 2)
>>> [round(each, 4) for each in x.tolist()]
[1.0, 0.5]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.control.actor_critic import ActorCritic, RolloutSettings, actor_critic_metrics
from rlkern.control.declaration import BOX, DISCRETE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.networks import Weights
from rlkern.control.policies import counted
from rlkern.control.rollout import Rollout
from rlkern.runs.settings.types import BelowOne, Count, NotNegative, Positive


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], right: Tensor, iterations: int
) -> Tensor:
    """Returns x with product(x) ≈ right, for a positive definite product.

    Paper: Hestenes & Stiefel 1952, doi 10.6028/jres.049.044, §3.
    """
    x = torch.zeros_like(right)
    rest = right.clone()
    way = rest.clone()
    square = rest.dot(rest)
    for _ in range(iterations):
        if square < 1e-10:
            break
        image = product(way)
        length = square / way.dot(image)
        x += length * way
        rest -= length * image
        before, square = square, rest.dot(rest)
        way = rest + (square / before) * way
    return x


class TRPOSettings(RolloutSettings):
    """Settings of TRPO; the defaults are those of sb3-contrib."""

    learning_rate: Positive = 1e-3
    """Step size of Adam, which fits the value function."""
    batch_size: Count = 128
    """Largest minibatch of the value function."""
    epochs: Count = 10
    """Times that the value function goes through a rollout."""
    target_kl: Positive = 0.01
    """Largest mean KL δ of a step (arXiv 1502.05477, appendix E)."""
    cg_iterations: Count = 15
    """Iterations of the conjugate gradients; the paper takes 10."""
    cg_damping: NotNegative = 0.1
    """Multiple of the identity that is added to the Fisher matrix."""
    shrink: BelowOne = 0.8
    """Factor by which the line search shortens the step."""
    line_search: Count = 10
    """Steps that the line search tries; if none holds, the policy stays."""


class TRPO(ActorCritic):
    """One rollout, one constrained step of the policy, epochs of the value function."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        self.policy_weights = Weights(self.policy.parameters, self.device)
        self.weights = Weights(self.critic.parameters, self.device).adam(settings.learning_rate)

    def iterate(self) -> dict[str, float]:
        """Takes a rollout, moves the policy, fits the value function."""
        s = self.settings
        batch = self.collect()
        with torch.no_grad():
            value = self.value(torch.cat([batch.observation, batch.after]))
        advantage, target = batch.estimates(value, discount=s.discount, gae_lambda=s.gae_lambda)
        mask, _ = counted(len(target), self.device)
        policy, kl = self.constrained_step(batch, rlkern.aggregate.whiten(advantage, mask))
        fit = self._fit(batch.observation, target)
        return {**actor_critic_metrics(policy, fit), "losses/approx_kl": kl}

    def constrained_step(
        self, batch: Rollout, advantage: Tensor
    ) -> tuple[rlkern.LossOutput, float]:
        """Returns the loss before the step, and the KL of the policy after it from that before."""
        s, weights = self.settings, self.policy_weights
        outputs = self.policy.outputs(batch.observation)
        loss = self.policy.loss(outputs, batch.action, advantage, algorithm="reinforce")
        ascent = -weights.gradient(loss.loss)
        with torch.no_grad():
            outputs = outputs.detach()
            old = self.policy.distribution(outputs)
            old_logprob = self.policy.logprob(outputs, batch.action)
        product = self._fisher(batch.observation, old)
        way = conjugate_gradient(product, ascent, s.cg_iterations)
        curvature = way.dot(product(way))
        if not curvature > 0.0:
            return loss, 0.0
        step = torch.sqrt(2.0 * s.target_kl / curvature) * way
        start = weights.vector.detach().clone()
        with torch.no_grad():
            for tried in range(s.line_search):
                weights.vector.data.copy_(start + s.shrink**tried * step)
                outputs = self.policy.outputs(batch.observation)
                kl = self.policy.kl(old, outputs).mean()
                ratio = torch.exp(self.policy.logprob(outputs, batch.action) - old_logprob)
                # At ratio 1 the mean of r·A is the mean of A.
                if kl <= s.target_kl and (ratio * advantage).mean() > advantage.mean():
                    return loss, kl.item()
        weights.vector.data.copy_(start)
        return loss, 0.0

    def _fisher(self, observation: Tensor, old: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
        """Returns v ↦ (F + damping·1)·v, F the second derivative of the mean KL at the policy."""
        parameters = self.policy.parameters
        kl = self.policy.kl(old, self.policy.outputs(observation)).mean()
        first = torch.autograd.grad(kl, parameters, create_graph=True)
        slope = torch.cat([each.reshape(-1) for each in first])

        def product(v: Tensor) -> Tensor:
            second = torch.autograd.grad(slope.dot(v), parameters, retain_graph=True)
            flat = torch.cat([each.reshape(-1) for each in second])
            return flat + self.settings.cg_damping * v

        return product

    def _fit(self, observation: Tensor, target: Tensor) -> rlkern.LossOutput:
        """Returns the last loss of the value function."""
        for _ in range(self.settings.epochs):
            order = torch.randperm(len(target)).to(self.device)
            for part in order.split(self.settings.batch_size):
                fit = self.value_loss(self.value(observation[part]), target[part])
                self.weights.step(fit.loss)
        return fit

    def state(self) -> dict[str, Any]:
        """Returns policy, value function and the optimizer's state."""
        return {"policy": self.policy_weights.state(), "value": super().state()}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        self.policy_weights.load(state["policy"])
        super().load(state["value"])


ALGORITHM = ControlAlgorithm(
    name="trpo",
    paper="arXiv 1502.05477, eq. 14 and appendix C",
    learns="actor–critic",
    on_policy=True,
    observations=BOX,
    actions=(DISCRETE, BOX),
    settings=TRPOSettings,
    learner=TRPO,
    # rl-baselines3-zoo, hyperparams/trpo.yml.
    recipes={
        "CartPole-v1": {
            "steps": 100_000, "num_envs": 2, "rollout": 512, "batch_size": 512, "epochs": 20,
            "cg_damping": 1e-3, "gae_lambda": 0.98,
        },
    },
    quick={"num_envs": 2, "rollout": 50},
)  # fmt: skip
