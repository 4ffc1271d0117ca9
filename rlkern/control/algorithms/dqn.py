# SPDX-License-Identifier: Apache-2.0
"""DQN: Q-learning with a network, a memory of transitions and a target network.

    loss = mean(huber(Q(s, a) − y))        y = r + γ·max_a' Q⁻(s', a'), and r where s' ended it

Paper: arXiv 1312.5602, eq. 2; Q⁻ is a copy of Q that is refreshed now and then, and the error is
clipped, as in doi 10.1038/nature14236. One call of rlkern.td_loss makes target and loss.

>>> import torch, rlkern
>>> q, next_q = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
>>> ended = torch.tensor([False])
>>> out = rlkern.td_loss(q, torch.tensor([1]), torch.tensor([0.5]), ended, next_q, discount=0.5)
>>> out.error.tolist(), out.loss.item()                 # y = 0.5 + 0.5·4, ½·0.5²
([0.5], 0.125)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

import rlkern
from rlkern.control.declaration import BOX, DISCRETE, ControlAlgorithm
from rlkern.control.environments import Environments
from rlkern.control.networks import Mlp, Weights
from rlkern.control.off_policy import OffPolicy, OffPolicySettings
from rlkern.control.replay import Transitions
from rlkern.runs.settings.types import Count, Counts, Positive, PositiveShare, Share


class DQNSettings(OffPolicySettings):
    """Settings of DQN; the defaults are those of Stable-Baselines3."""

    hidden: Counts = (64, 64)
    """Units of the hidden layers, ReLU between them."""
    learning_rate: Positive = 1e-4
    """Step size of Adam."""
    batch_size: Count = 32
    """Transitions of an update (doi 10.1038/nature14236, extended data table 1)."""
    train_every: Count = 4
    """Environment steps between two rounds of updates (the same table)."""
    target_every: Count = 10_000
    """Environment steps between two refreshments of the target network (the same table)."""
    epsilon: Share = 1.0
    """Share of random actions at the first step."""
    epsilon_end: Share = 0.05
    """Share of random actions after exploration_share of the run."""
    exploration_share: PositiveShare = 0.1
    """Share of the run in which epsilon falls linearly to epsilon_end."""
    max_grad_norm: Positive = 10.0
    """Longest gradient; a longer one is scaled down."""
    anneal: bool = False
    """Lower the learning rate linearly to 0 at the last step, so that a policy that is good stays
    so."""

    @property
    def steps_matter(self) -> bool:
        """Whether an early step depends on how many there will be."""
        return self.anneal or self.epsilon != self.epsilon_end


class DQN(OffPolicy):
    """Greedy but for a share of random actions."""

    def __init__(self, settings: Any, environments: Environments) -> None:
        super().__init__(settings, environments)
        space = environments.actions
        assert isinstance(space, spaces.Discrete)
        self.actions = int(space.n)
        sizes = [self.encoder.size, *settings.hidden, self.actions]
        self.q, self.target = Mlp(sizes, torch.relu), Mlp(sizes, torch.relu)
        self.weights = Weights(self.q.parameters, self.device).adam(settings.learning_rate)
        self.target_weights = Weights(self.target.parameters, self.device)
        self.target_weights.vector.data.copy_(self.weights.vector)

    def action_width(self) -> int:
        """Returns 1: the number of the action."""
        return 1

    @property
    def epsilon(self) -> float:
        """The share of random actions now."""
        s = self.settings
        passed = min(1.0, self.done / s.exploration_share)
        return s.epsilon + passed * (s.epsilon_end - s.epsilon)

    def greedy(self, observation: np.ndarray) -> np.ndarray:
        """Returns the actions of the largest values."""
        with torch.inference_mode():
            return self.q(self.encoder(observation)).argmax(-1).cpu().numpy()

    def explore(self, observation: np.ndarray, random: bool) -> np.ndarray:
        """Returns (E, 1)."""
        count = len(observation)
        chance = np.ones(count, bool) if random else self.rng.random(count) < self.epsilon
        action = self.rng.integers(self.actions, size=count)
        if not chance.all():
            action = np.where(chance, action, self.greedy(observation))
        return action[:, None]

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """Returns (E,)."""
        return action[:, 0]

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the greedy actions."""
        return self.greedy(observation)

    def bootstrap(self, following: Tensor) -> dict[str, Any]:
        """Returns what the library's td_loss needs for the value of the next states."""
        return {"bootstrap": "max", "next_q": self.target(following)}

    def update(self) -> None:
        """Makes one step on a sample."""
        s = self.settings
        rows: Transitions = self.replay.sample(self.rng, s.batch_size)
        with torch.no_grad():
            later = self.bootstrap(rows.next)
        q = self.q(rows.observation)
        self.last = rlkern.td_loss(
            q, rows.action.squeeze(1).long(), rows.reward, rows.terminated, discount=s.discount,
            **later,
        )  # fmt: skip
        self.weights.step(self.last.loss, s.max_grad_norm)

    def iterate(self) -> dict[str, float]:
        """Takes a step, learns, and refreshes the target network where it is due."""
        before = self.environments.steps
        if self.settings.anneal:
            self.weights.set_learning_rate(self.settings.learning_rate * (1.0 - self.done))
        found = super().iterate()
        every = self.settings.target_every
        if self.environments.steps // every > before // every:
            self.target_weights.vector.data.copy_(self.weights.vector)
        return found

    def losses(self) -> dict[str, float]:
        """Returns loss and mean value of the last update."""
        values = rlkern.value_metrics_dict(self.last.metrics)
        return {
            "losses/td_loss": self.last.loss.item(),
            "losses/q_values": values["value_mean"],
            "charts/epsilon": self.epsilon,
        }

    def state(self) -> dict[str, Any]:
        """Returns memory, both networks and the optimizer."""
        networks = {"weights": self.weights.state(), "target": self.target_weights.state()}
        return {**super().state(), **networks}

    def load(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        super().load(state)
        self.weights.load(state["weights"])
        self.target_weights.load(state["target"])


# rl-baselines3-zoo, hyperparams/dqn.yml, which keeps the learning rate; double DQN takes the same.
RECIPES = {
    "CartPole-v1": {
        "steps": 50_000, "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000,
        "learning_starts": 1000, "target_every": 10, "train_every": 256, "updates": 128,
        "exploration_share": 0.16, "epsilon_end": 0.04, "hidden": [256, 256], "anneal": True,
    },
    "Acrobot-v1": {
        "steps": 100_000, "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000,
        "learning_starts": 128, "target_every": 250, "train_every": 4, "updates": 4,
        "exploration_share": 0.12, "epsilon_end": 0.1, "hidden": [256, 256],
    },
}  # fmt: skip
QUICK = {"learning_starts": 100, "target_every": 50, "updates": 2}

ALGORITHM = ControlAlgorithm(
    name="dqn",
    paper="arXiv 1312.5602, eq. 2; doi 10.1038/nature14236",
    learns="value",
    on_policy=False,
    observations=BOX,
    actions=(DISCRETE,),
    settings=DQNSettings,
    learner=DQN,
    recipes=RECIPES,
    quick=QUICK,
)
